"""Tower: the blocks of one modality, a frozen encoder first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from freezealign.modules import Features, FrozenEncoder, Module, Pooling


class TokenEmbeddings(NamedTuple):
    """The tokens of one item in the shared space.

    Args:
        embeddings: (T, d); an image's patches in row-major order of ``grid``, or all tokens of a text.
        grid: (rows, columns) of the patches; ``None`` for a text.
    """

    embeddings: np.ndarray | Tensor
    grid: tuple[int, int] | None


class Tower(nn.Sequential):
    """A frozen encoder and the trained blocks that follow it.

    Raises:
        TypeError: If the first block is not a :class:`FrozenEncoder`.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        if not blocks or not isinstance(blocks[0], FrozenEncoder):
            first = type(blocks[0]).__name__ if blocks else "nothing"
            raise TypeError(f"a tower starts with a FrozenEncoder, not with {first}.")
        super().__init__(*blocks)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())  # type: ignore[arg-type]

    @property
    def encoder(self) -> FrozenEncoder:
        """The frozen encoder."""
        encoder = self[0]
        assert isinstance(encoder, FrozenEncoder)
        return encoder

    @property
    def blocks(self) -> list[Module]:
        """The trained blocks."""
        return list(self)[1:]

    def forward(self, features: Features, pool: bool = True) -> Features:
        """Embed a preprocessed batch, or frozen features computed earlier.

        Args:
            features: What the encoder's ``preprocess`` gives, or what its ``forward`` gave.
            pool: ``False`` leaves out the pooling: every token goes through the tower on its own, and
                ``sentence_embedding`` is (B, T, d).
        """
        if "token_embeddings" not in features:
            features = self.encoder(features)
        for block in self.blocks:
            if isinstance(block, Pooling) and not pool:
                features = {**features, "sentence_embedding": features["token_embeddings"]}
            else:
                features = block(features)
        if "sentence_embedding" not in features:
            raise ValueError("the tower gives tokens but no vector; add a Pooling.")
        return features

    def token_rows(self, features: Features) -> Iterator[TokenEmbeddings]:
        """Yield the tokens of each item of a batch embedded with ``pool=False``, without padding."""
        embeddings, mask = features["sentence_embedding"], features.get("attention_mask")
        for row, tokens in enumerate(embeddings):
            yield TokenEmbeddings(tokens if mask is None else tokens[mask[row].bool()], features.get("grid"))

    def get_embedding_dimension(self) -> int:
        """Return the width of the tower's vectors."""
        widths = [getattr(block, "get_embedding_dimension", None) for block in self]
        return int([width() for width in widths if width is not None][-1])

    def num_parameters(self) -> int:
        """Return how many parameters the tower has, frozen and trained."""
        return self.encoder.num_parameters() + sum(p.numel() for block in self.blocks for p in block.parameters())


def find_tower(towers: Mapping[str, Tower], name: str) -> Tower:
    """Return the tower called ``name``.

    Raises:
        ValueError: If the model has none.
    """
    if name not in towers:
        raise ValueError(f"this model has no '{name}' tower; it has {list(towers)}.")
    return towers[name]


def check_widths(towers: Mapping[str, Tower]) -> int:
    """Return the width all towers share.

    Raises:
        ValueError: If there is no tower, or the widths differ.
    """
    widths = {name: tower.get_embedding_dimension() for name, tower in towers.items()}
    if len(set(widths.values())) != 1:
        raise ValueError(f"all towers must end in one width to share a space, got {widths or 'no towers'}.")
    return next(iter(widths.values()))


def default_device() -> torch.device:
    """Return the accelerator of this machine where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
