"""Pooling: from the tokens of an item to one vector."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from freezealign.batch import Features
from freezealign.modules.base import Module, require

PoolingMode = Literal["cls", "mean", "max", "patch_mean", "cls+patch_mean"]


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``tokens`` (B, T, D) where ``mask`` (B, T) is true; an item without any true position gives zeros."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)


def masked_max(tokens: Tensor, mask: Tensor) -> Tensor:
    """Maximum of ``tokens`` (B, T, D) per channel where ``mask`` (B, T) is true."""
    return tokens.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(1)


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
        return {**features, "sentence_embedding": self._pool(features)}

    def _pool(self, features: Features) -> Tensor:
        if self.mode == "cls":
            return self._cls(features)
        tokens = require(features, "token_embeddings", self, "put a FrozenEncoder before it.")
        if self.mode == "max":
            return masked_max(tokens, self.mask(features))
        mean = masked_mean(tokens, self.mask(features))
        return mean + self._cls(features) if self.mode == "cls+patch_mean" else mean

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
