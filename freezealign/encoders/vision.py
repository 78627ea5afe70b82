"""From what vision models return to patches on a grid and one summary vector."""

from __future__ import annotations

from torch import Tensor

from freezealign.batch import Features


def split_tokens(
    tokens: Tensor, grid: tuple[int, int], pooled: Tensor | None = None, has_cls: bool | None = None
) -> Features:
    """Separate patches from the tokens in front of them.

    Args:
        tokens: (B, P + rows · columns, D): P prefix tokens, CLS first, then registers or a distillation token.
        grid: (rows, columns) of the patches.
        pooled: (B, D), the model's own pooled output, the summary where there is no CLS; by default the patch mean.
        has_cls: Whether the first prefix token is CLS; by default, if there is any.

    Returns:
        ``token_embeddings`` (B, rows · columns, D), patches only; ``cls_token_embeddings`` (B, D); ``grid``.

    Raises:
        ValueError: If there are fewer tokens than the grid has cells.
    """
    prefix = tokens.shape[1] - grid[0] * grid[1]
    if prefix < 0:
        raise ValueError(f"{tokens.shape[1]} tokens do not fill a grid of {grid[0]} x {grid[1]} patches.")
    patches = tokens[:, prefix:]
    if prefix > 0 if has_cls is None else has_cls:
        summary = tokens[:, 0]
    else:
        summary = patches.mean(1) if pooled is None else pooled.flatten(1)
    return {"token_embeddings": patches, "cls_token_embeddings": summary, "grid": grid}


def flatten_map(feature_map: Tensor, pooled: Tensor | None = None) -> Features:
    """Read a feature map (B, D, rows, columns) as a grid of tokens; the summary defaults to the global average."""
    rows, columns = feature_map.shape[-2:]
    return split_tokens(feature_map.flatten(2).transpose(1, 2), (rows, columns), pooled)
