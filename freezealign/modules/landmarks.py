"""Heads that compare a vector with landmarks, vectors seen in training: a kernel, and likeness itself."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, normalize

from freezealign.batch import Features
from freezealign.modules.base import Module, check_options, require
from freezealign.modules.projection import fit_input

SMALLEST_EIGENVALUE = 1e-8
"""Relative to the largest; directions of the kernel below it are rounding."""


class LandmarkHead(Module):
    """Compare ``sentence_embedding`` (..., in_dim) with landmarks, vectors of the encoder's own space."""

    def __init__(self, in_dim: int, landmarks: int = 0) -> None:
        super().__init__()
        check_options(in_dim=in_dim, landmarks=landmarks)
        self.in_dim = in_dim
        self.center = nn.Parameter(torch.zeros(in_dim))
        self.points = nn.Parameter(torch.zeros(landmarks, in_dim))

    @property
    def landmarks(self) -> int:
        """How many landmarks there are."""
        return len(self.points)

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
        return normalize(layer_norm(x, (self.in_dim,)) - self.center, dim=-1) @ self.points.T

    @torch.no_grad()
    def set_landmarks(self, vectors: Tensor) -> None:
        """Take vectors (L, in_dim) of the encoder's space as landmarks, and their mean as centre."""
        normed = layer_norm(vectors.to(self.points), (self.in_dim,))
        self.center.copy_(normed.mean(0))
        self.points = nn.Parameter(normalize(normed - self.center, dim=-1))


class KernelHead(LandmarkHead):
    """Project ``sentence_embedding`` (..., in_dim) to (..., out_dim) by its similarities to landmarks.

    ``Linear(L, d)(exp((cos(LayerNorm(x) - c, l) - 1) / width))`` for L landmarks l and a centre c in the encoder's own
    space. With few pairs this beats any map that is linear in x: near what was seen it is as curved as the data asks
    for. Source: kernel canonical correlation analysis, Bach & Jordan 2002; landmarks, Williams & Seeger 2001.

    Args:
        in_dim: Width of the pooled vector.
        out_dim: Width of the shared space.
        landmarks: How many there are; a new head has none until ``fit`` takes them from the training pairs.
        width: Of the kernel: the difference in cosine over which similarity falls by a factor e.
    """

    config_keys: ClassVar[list[str]] = ["in_dim", "out_dim", "landmarks", "width"]

    def __init__(self, in_dim: int, out_dim: int = 1024, landmarks: int = 0, width: float = 0.4) -> None:
        super().__init__(in_dim, landmarks)
        check_options(out_dim=out_dim, width=width)
        self.out_dim, self.width = out_dim, float(width)
        self.weight, self.bias = nn.Parameter(torch.zeros(out_dim, landmarks)), nn.Parameter(torch.zeros(out_dim))
        self._whitener: Tensor | None = None

    def compare(self, cosine: Tensor) -> Tensor:
        """Return the projection (..., out_dim)."""
        return linear(self._kernel(cosine), self.weight, self.bias)

    def _kernel(self, cosine: Tensor) -> Tensor:
        return torch.exp((cosine - 1) / self.width)

    @torch.no_grad()
    def set_landmarks(self, vectors: Tensor) -> None:
        """Take vectors (L, in_dim) of the encoder's space as landmarks; the weights are zero until they are set."""
        super().set_landmarks(vectors)
        self.weight = nn.Parameter(self.weight.new_zeros(self.out_dim, len(vectors)))
        values, directions = torch.linalg.eigh(self._kernel(self.points.double() @ self.points.double().T))
        kept = values > SMALLEST_EIGENVALUE * values[-1]
        self._whitener = directions[:, kept] * values[kept].rsqrt()

    def prepared(self, x: Tensor) -> Tensor:
        """Return coordinates of ``x`` (n, in_dim) in which inner products are the kernel: (n, r), r ≤ L.

        Only after :meth:`set_landmarks`, until the weights are set.
        """
        assert self._whitener is not None
        return self._kernel(self.cosine(x.to(self.points))).to(self._whitener) @ self._whitener

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


class RelativeHead(LandmarkHead):
    """Turn ``sentence_embedding`` (..., in_dim) into its similarities to the landmarks: (..., L).

    Where the landmarks of two towers are pairs, the two descriptions can be compared: an image that is like the images
    of the pairs 3 and 8 matches a text that is like their texts. Negative cosines and all but the largest count as 0.
    Source: Norelli et al., "ASIF: Coupled Data Turns Unimodal Models to Multimodal Without Training", NeurIPS 2023;
    vectors are layer-normed and centred here, which pays.

    Args:
        in_dim: Width of the pooled vector.
        landmarks: How many there are; a new head has none until ``fit`` takes them from the training pairs.
        neighbours: How many of the largest similarities count.
        power: What they are raised to.
    """

    config_keys: ClassVar[list[str]] = ["in_dim", "landmarks", "neighbours", "power"]

    def __init__(self, in_dim: int, landmarks: int = 0, neighbours: int = 100, power: float = 2.0) -> None:
        super().__init__(in_dim, landmarks)
        check_options(neighbours=neighbours, power=power)
        self.neighbours, self.power = neighbours, float(power)

    def compare(self, cosine: Tensor) -> Tensor:
        """Return the sparse similarities (..., L)."""
        positive = cosine.clamp(min=0)
        if self.neighbours < self.landmarks:
            threshold = positive.topk(self.neighbours, dim=-1).values[..., -1:]
            positive = positive * (positive >= threshold)
        return positive.pow(self.power)

    def get_embedding_dimension(self) -> int:
        """Return the number of landmarks."""
        return self.landmarks
