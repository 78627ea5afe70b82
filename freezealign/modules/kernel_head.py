"""KernelHead: a map made of similarities to landmarks, which a closed form sets."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from freezealign.modules.landmarks import LandmarkHead
from freezealign.modules.projection import AffineBranch

SMALLEST_EIGENVALUE = 1e-8
"""Relative to the largest; directions of the kernel below it are rounding."""


class KernelHead(LandmarkHead, AffineBranch):
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
        if not 0 < width < 1e6:
            raise ValueError(f"the width of a kernel lies between 0 and a million, got {width}.")
        self.out_dim, self.width = out_dim, width
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
