"""LandmarkHead: what heads share that compare a vector with vectors seen in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize

from freezealign.batch import Features
from freezealign.modules.base import Module, require
from freezealign.modules.projection import fit_input


class LandmarkHead(Module):
    """Compare ``sentence_embedding`` (..., in_dim) with landmarks, vectors of the encoder's own space.

    Args:
        in_dim: Width of the pooled vector.
        landmarks: How many there are; a new head has none until ``fit`` takes them from the training pairs.
    """

    def __init__(self, in_dim: int, landmarks: int = 0) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.center = nn.Parameter(torch.zeros(in_dim))
        self.points = nn.Parameter(torch.zeros(landmarks, in_dim))

    @property
    def landmarks(self) -> int:
        """How many landmarks there are."""
        return len(self.points)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.points.device

    def forward(self, features: Features) -> Features:
        """Replace ``sentence_embedding`` by what :meth:`compare` makes of it.

        Raises:
            ValueError: If there is no pooled vector, its width is not ``in_dim``, or there are no landmarks yet.
        """
        pooled = require(features, "sentence_embedding", self, "put a Pooling before it.")
        if not self.landmarks:
            raise ValueError(f"this {type(self).__name__} has no landmarks yet: fit the model, init='closed-form'.")
        return {**features, "sentence_embedding": self.compare(self.cosine(fit_input(pooled, self.in_dim, self)))}

    def compare(self, cosine: Tensor) -> Tensor:
        """Return an embedding (..., d) for cosines (..., L) with the landmarks."""
        raise NotImplementedError

    def cosine(self, x: Tensor) -> Tensor:
        """Return the cosine of ``x`` (..., in_dim), layer-normed and centred, with every landmark: (..., L)."""
        return normalize(self._centred(x), dim=-1) @ self.points.T

    def _centred(self, x: Tensor) -> Tensor:
        return layer_norm(x, (self.in_dim,)) - self.center

    @torch.no_grad()
    def set_landmarks(self, vectors: Tensor) -> None:
        """Take vectors (L, in_dim) of the encoder's space as landmarks, and their mean as centre."""
        vectors = vectors.to(self.points)
        self.center.copy_(layer_norm(vectors, (self.in_dim,)).mean(0))
        self.points = nn.Parameter(normalize(self._centred(vectors), dim=-1))
