"""KernelHead: a map made of similarities to landmarks, which a closed form sets."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, normalize

from freezealign.modules.base import Features, Module, require
from freezealign.modules.projection import AffineBranch, fit_input

SMALLEST_EIGENVALUE = 1e-8
"""Relative to the largest; directions of the kernel below it are rounding."""


class KernelHead(Module, AffineBranch):
    """Project ``sentence_embedding`` (..., in_dim) to (..., out_dim) by its similarities to landmarks.

    ``Linear(L, d)(exp((cos(LayerNorm(x) - c, l) - 1) / width))`` for L landmarks l and a centre c in the encoder's own
    space. With few pairs this beats any map that is linear in x: near what was seen it is as curved as the data asks
    for. Source: kernel canonical correlation analysis, Bach & Jordan 2002; landmarks, Williams & Seeger 2001.

    Args:
        in_dim: Width of the pooled vector.
        out_dim: Width of the shared space.
        landmarks: How many there are; a new head has none until ``fit`` chooses them among the training pairs.
        width: Of the kernel: the difference in cosine over which similarity falls by a factor e.
    """

    config_keys: ClassVar[list[str]] = ["in_dim", "out_dim", "landmarks", "width"]

    def __init__(self, in_dim: int, out_dim: int = 1024, landmarks: int = 0, width: float = 0.4) -> None:
        super().__init__()
        self.in_dim, self.out_dim, self.width = in_dim, out_dim, width
        self.center = nn.Parameter(torch.zeros(in_dim))
        self.points = nn.Parameter(torch.zeros(landmarks, in_dim))
        self.weight, self.bias = nn.Parameter(torch.zeros(out_dim, landmarks)), nn.Parameter(torch.zeros(out_dim))
        self._whitener: Tensor | None = None

    @property
    def landmarks(self) -> int:
        """How many landmarks there are."""
        return len(self.points)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.points.device

    def forward(self, features: Features) -> Features:
        """Replace ``sentence_embedding`` by its projection.

        Raises:
            ValueError: If there is no pooled vector, its width is not ``in_dim``, or there are no landmarks yet.
        """
        pooled = require(features, "sentence_embedding", self, "put a Pooling before it.")
        if not self.landmarks:
            raise ValueError("this KernelHead has no landmarks yet: fit the model with init='closed-form'.")
        similarities = self.similarities(fit_input(pooled, self.in_dim, self))
        return {**features, "sentence_embedding": linear(similarities, self.weight, self.bias)}

    def similarities(self, x: Tensor) -> Tensor:
        """Return the kernel of ``x`` (..., in_dim) with every landmark: (..., L)."""
        cosine = normalize(self._centred(x), dim=-1) @ self.points.T
        return torch.exp((cosine - 1) / self.width)

    def _centred(self, x: Tensor) -> Tensor:
        return layer_norm(x, (self.in_dim,)) - self.center

    @torch.no_grad()
    def set_landmarks(self, vectors: Tensor) -> None:
        """Take vectors (L, in_dim) of the encoder's space as landmarks and their mean as centre; zero the rest."""
        vectors = vectors.to(self.points)
        self.center.copy_(layer_norm(vectors, (self.in_dim,)).mean(0))
        self.points = nn.Parameter(normalize(self._centred(vectors), dim=-1))
        self.weight = nn.Parameter(self.weight.new_zeros(self.out_dim, len(vectors)))
        values, directions = torch.linalg.eigh(
            (self.points.double() @ self.points.double().T - 1).div(self.width).exp()
        )
        kept = values > SMALLEST_EIGENVALUE * values[-1]
        self._whitener = directions[:, kept] * values[kept].rsqrt()

    def prepared(self, x: Tensor) -> Tensor:
        """Return coordinates of ``x`` (n, in_dim) in which inner products are the kernel: (n, r), r ≤ L.

        Only after :meth:`set_landmarks`, until the weights are set.
        """
        assert self._whitener is not None
        return self.similarities(x.to(self.points)).to(self._whitener) @ self._whitener

    @torch.no_grad()
    def set_affine(self, weight: Tensor, bias: Tensor) -> None:
        """Make this ``weight @ prepared(x) + bias``."""
        assert self._whitener is not None
        self.weight.copy_(weight.to(self._whitener) @ self._whitener.T)
        self.bias.copy_(bias)
        self._whitener = None

    def get_embedding_dimension(self) -> int:
        """Return the output width."""
        return self.out_dim
