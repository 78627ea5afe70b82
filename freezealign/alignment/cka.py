"""Centred kernel alignment: how alike the similarities between items are in two spaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from freezealign.alignment.measure import Indices, Measure, MomentMeasure, item_tiles, unit_norm
from freezealign.alignment.vectors import Vectors
from freezealign.moments import Moments, hsic1

ROUNDING = 1e-7
"""Of an HSIC in mean squares of the kernel: what is smaller is not more than float32 leaves."""


class LinearCKA(MomentMeasure):
    """Linear CKA: HSIC(x, y) / sqrt(HSIC(x, x) · HSIC(y, y)) with inner products as kernels.

    Invariant to rotation, to one scale for all dimensions, and to a shift; not to an invertible linear map.
    Sources: Kornblith et al. 2019 (arXiv 1905.00414); the unbiased HSIC₁, Song et al. 2012 (JMLR 13).

    Args:
        unbiased: 0 on average for unrelated spaces of any width. The biased form reads ``d / (n + d)`` or so there:
            a wide encoder wins for nothing.
    """

    def __init__(self, unbiased: bool = True) -> None:
        self.unbiased = self.hsic = unbiased
        self.name = "cka" if unbiased else "cka_biased"

    def kernel(self, x: Tensor) -> Tensor:
        """Return the inner products of centred vectors."""
        x = x - x.mean(0)
        return x @ x.T

    def describe(self, kernel: Tensor) -> Tensor:
        """Return the centred kernel; U-centred, without diagonal, if unbiased."""
        return unit_norm(u_centred(kernel) if self.unbiased else centred(kernel), scale=kernel)

    def from_moments(self, moments: Moments, i: int, j: int) -> float:
        """Return CKA from sums: O(d²) memory, O(n d²) time."""
        return cosine(*(moments.hsic(*block, self.unbiased) for block in ((i, j), (i, i), (j, j))))


class RBFCKA(Measure):
    """Unbiased CKA with Gaussian kernels exp(-‖a - b‖² / (2 s²)): like neighbourhoods count more than like directions.

    Source: Kornblith et al. 2019, whose s is a fraction of the median distance; here it is one of the root mean square
    distance, which is one pass over any number of items.

    Args:
        bandwidth: s in root mean square distances.
    """

    name = "rbf_cka"

    def __init__(self, bandwidth: float = 0.5) -> None:
        if not 0 < bandwidth < math.inf:
            raise ValueError(f"bandwidth must be a positive number, got {bandwidth}.")
        self.bandwidth = bandwidth

    def kernel(self, x: Tensor) -> Tensor:
        """Return the Gaussian kernel."""
        return self._kernel(self._scaled(x), slice(None))

    def describe(self, kernel: Tensor) -> Tensor:
        """Return the U-centred kernel."""
        return unit_norm(u_centred(kernel), scale=kernel)

    def measure_many(self, spaces: Sequence[Vectors], pairs: Indices) -> list[float]:
        """Make kernels a tile at a time, each once for all pairs: O(n d) memory, O(n² d) time."""
        scaled = [self._scaled(space.all()) for space in spaces]
        n, traces = len(scaled[0]), dict.fromkeys([*pairs, *((i, i) for i in range(len(scaled)))], 0.0)
        sums = [torch.zeros(n, dtype=torch.float64, device=space.device) for space in scaled]
        for tile in item_tiles(n, n * len(scaled)):
            kernels = [self._kernel(space, tile) for space in scaled]
            for total, kernel in zip(sums, kernels):
                total[tile] = kernel.sum(1, dtype=torch.float64)
            for i, j in traces:
                traces[i, j] += float((kernels[i] * kernels[j]).sum(dtype=torch.float64))

        def hsic(i: int, j: int) -> float:
            a, b = sums[i], sums[j]
            found = hsic1(n, traces[i, j], float(a.sum()), float(b.sum()), float(a @ b))
            return 0.0 if i == j and found <= ROUNDING * traces[i, j] / n**2 else found

        return [cosine(hsic(i, j), hsic(i, i), hsic(j, j)) for i, j in pairs]

    def _scaled(self, x: Tensor) -> Tensor:
        """Return vectors in units of s, centred."""
        x = x - x.mean(0)
        mean_square = 2 * x.square().sum(1).mean() * len(x) / (len(x) - 1)
        return x / (self.bandwidth * mean_square.sqrt())

    @staticmethod
    def _kernel(x: Tensor, rows: slice) -> Tensor:
        """Return some rows of the kernel matrix, zeros on the diagonal."""
        squares = x.square().sum(1)
        kernel = (x[rows] @ x.T).sub_(squares / 2).sub_(squares[rows, None] / 2).clamp_(max=0).exp_()
        kernel.diagonal(rows.start or 0).zero_()
        return kernel


def centred(kernel: Tensor) -> Tensor:
    """Return a kernel matrix (n, n) whose rows and columns have mean 0, in its own precision, computed in float64."""
    means = kernel.mean(1, dtype=torch.float64)
    return kernel - means.to(kernel)[:, None] - (means - means.mean()).to(kernel)


def u_centred(kernel: Tensor) -> Tensor:
    """Return a kernel matrix (n, n) centred so that the inner product of two of them is n (n - 3) HSIC₁.

    Source: Székely & Rizzo 2014 ("Partial distance correlation", Annals of Statistics 42), definition 2.
    """
    n = len(kernel)
    kernel = kernel.clone().fill_diagonal_(0)
    sums = kernel.sum(1, dtype=torch.float64)
    shifts = sums / (n - 2)
    kernel -= shifts.to(kernel)[:, None]
    kernel -= (shifts - sums.sum() / ((n - 1) * (n - 2))).to(kernel)
    return kernel.fill_diagonal_(0)


def cosine(cross: float, own_x: float, own_y: float) -> float:
    """Return ``cross / sqrt(own_x · own_y)``; NaN where a space has nothing to compare."""
    return cross / math.sqrt(own_x) / math.sqrt(own_y) if own_x > 0 and own_y > 0 else math.nan


def linear_cka(x: Any, y: Any, unbiased: bool = True) -> float:
    """Return linear CKA of x (n, dx) and y (n, dy); see :class:`LinearCKA`."""
    return LinearCKA(unbiased)(x, y)


def rbf_cka(x: Any, y: Any, bandwidth: float = 0.5) -> float:
    """Return unbiased CKA of x (n, dx) and y (n, dy) with Gaussian kernels; see :class:`RBFCKA`."""
    return RBFCKA(bandwidth)(x, y)
