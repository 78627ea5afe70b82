"""Pooling and Normalize: from the tokens of an item to one vector, and that onto the unit sphere."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from freezealign.batch import Features
from freezealign.modules.base import Module, require

PoolingMode = Literal["cls", "mean", "max", "patch_mean", "cls+patch_mean"]


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``tokens`` (B, T, D) where ``mask`` (B, T) is true; an item without any true position gives zeros."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)


class Pooling(Module):
    """Pool ``token_embeddings`` (B, T, D) into ``sentence_embedding`` (B, D).

    An image's ``token_embeddings`` hold patches only: :class:`~freezealign.encoders.FrozenEncoder` keeps CLS apart and
    drops registers, so neither can leak into a mean of patches. A text's ``token_embeddings`` hold all its tokens.

    Args:
        mode: ``cls``: the encoder's own summary vector. ``mean``, ``max``: over all tokens, a text's special tokens
            included (as the paper does). ``patch_mean``: the mean over patches, or over a text's words without its
            special tokens. ``cls+patch_mean``: the sum of the two, the paper's image vector.
    """

    config_keys: ClassVar[list[str]] = ["mode"]

    def __init__(self, mode: PoolingMode = "mean") -> None:
        super().__init__()
        if mode not in get_args(PoolingMode):
            raise ValueError(f"unknown pooling {mode!r}; choose one of {get_args(PoolingMode)}.")
        self.mode = mode

    def forward(self, features: Features) -> Features:
        """Add ``sentence_embedding``.

        Raises:
            ValueError: If the mode needs a CLS vector or tokens that are not there.
        """
        if self.mode == "cls":
            return {**features, "sentence_embedding": self._cls(features)}
        tokens, mask = (
            require(features, "token_embeddings", self, "put a FrozenEncoder before it."),
            self.mask(features),
        )
        if self.mode == "max":
            pooled = tokens.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)
        else:
            pooled = masked_mean(tokens, mask)
        if self.mode == "cls+patch_mean":
            pooled = pooled + self._cls(features)
        return {**features, "sentence_embedding": pooled}

    def mask(self, features: Features) -> Tensor:
        """Return which tokens are pooled, (B, T)."""
        tokens, mask = features["token_embeddings"], features.get("attention_mask")
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
        if "patch" in self.mode and features.get("special_tokens_mask") is not None:
            mask = mask & ~features["special_tokens_mask"].bool()
        return mask

    def _cls(self, features: Features) -> Tensor:
        remedy = "the encoder gives no CLS vector, or the TokenProjector was built with cls=False."
        return require(features, "cls_token_embeddings", self, remedy)


class Normalize(Module):
    """Divide ``sentence_embedding`` (..., d) by its L2 norm, so that cosine similarity is a dot product."""

    def forward(self, features: Features) -> Features:
        """Replace ``sentence_embedding`` by its unit-length version."""
        embedding = require(features, "sentence_embedding", self, "put a Pooling before it.")
        return {**features, "sentence_embedding": normalize(embedding, dim=-1)}
