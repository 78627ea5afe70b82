"""Alignment up to a linear map: canonical correlation and Procrustes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freezealign.alignment.measure import MomentMeasure, unit_norm
from freezealign.moments import Moments


class LinearMapMeasure(MomentMeasure):
    """A measure that compares vectors (n, r) themselves rather than similarities: by the singular values of xᵀ y."""

    double = True

    def kernel(self, x: Tensor) -> Tensor:
        """Return the vectors in float64."""
        return x.double()

    def select(self, matrix: Tensor, index: Tensor) -> Tensor:
        """Return the rows of some items, or of all in another order."""
        return matrix[index]


class CCA(LinearMapMeasure):
    """The mean canonical correlation: how well each space predicts the other linearly.

    Invariant to any invertible linear map. It reads 1 where there are no more items than dimensions, so compare it with
    its permutation null. Sources: Hotelling 1936; Raghu et al. 2017 (arXiv 1706.05806) for the mean.
    """

    name = "cca"
    variance = 1.0

    def describe(self, kernel: Tensor) -> Tensor:
        """Return an orthonormal basis of the space's directions, (n, r)."""
        basis, values, _ = torch.linalg.svd(kernel - kernel.mean(0), full_matrices=False)
        return basis[:, : self._rank(values.square())]

    def compare(self, first: Tensor, second: Tensor) -> float:
        """Return the mean over as many directions as the smaller space has."""
        return float(singular_values(first.T @ second).mean())

    def from_moments(self, moments: Moments, i: int, j: int) -> float:
        """Return the mean canonical correlation from covariances."""
        x, y = (self._whitening(moments.covariance(space, space)) for space in (i, j))
        return float(singular_values(x.T @ moments.covariance(i, j) @ y).mean())

    def _whitening(self, covariance: Tensor) -> Tensor:
        """Return (d, r), which makes the space's strongest directions uncorrelated, of variance 1."""
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        rank = self._rank(values)
        return vectors[:, :rank] / values[:rank].sqrt()

    def _rank(self, variances: Tensor) -> int:
        """Return how many directions are kept; rounding errors are none."""
        rank = int((variances > variances[0] * len(variances) * RELATIVE_ERROR).sum())
        if self.variance < 1:
            shares = variances.cumsum(0) / variances.sum()
            rank = min(rank, int((shares < self.variance).sum()) + 1)
        return rank


RELATIVE_ERROR = 1e-9
"""Of a variance; directions weaker than this are noise of the arithmetic."""


class SVCCA(CCA):
    """The mean canonical correlation of the directions that hold most of each space's variance.

    Source: Raghu et al. 2017 (arXiv 1706.05806).

    Args:
        variance: The share that is kept.
    """

    name = "svcca"

    def __init__(self, variance: float = 0.99) -> None:
        if not 0 < variance <= 1:
            raise ValueError(f"variance is a share in (0, 1], got {variance}.")
        self.variance = variance


class Procrustes(LinearMapMeasure):
    """How well one space fits the other after the best rotation: ‖Σ x yᵀ‖_* / (‖x‖_F ‖y‖_F) of centred vectors.

    1 less half the squared Procrustes distance of spaces of unit norm. Sources: Schönemann 1966; Ding et al. 2021
    (arXiv 2108.01661).
    """

    name = "procrustes"

    def describe(self, kernel: Tensor) -> Tensor:
        """Return centred vectors (n, d), of unit norm."""
        return unit_norm(kernel - kernel.mean(0))

    def compare(self, first: Tensor, second: Tensor) -> float:
        """Return the nuclear norm of the product."""
        return float(singular_values(first.T @ second).sum())

    def from_moments(self, moments: Moments, i: int, j: int) -> float:
        """Return the nuclear norm of the covariance, normalised."""
        scale = (moments.covariance(i, i).trace() * moments.covariance(j, j).trace()).sqrt()
        return float(singular_values(moments.covariance(i, j)).sum() / scale)


def singular_values(matrix: Tensor) -> Tensor:
    """Return the singular values of a matrix, in ascending order, from its smaller Gram matrix: many times as fast.

    Values below 1e-8 of the largest are lost, which a sum does not notice; of NaN there are NaN.
    """
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    if not gram.isfinite().all():
        return torch.full_like(gram[0], torch.nan)
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()


def cca(x: Any, y: Any) -> float:
    """Return the mean canonical correlation of x (n, dx) and y (n, dy); see :class:`CCA`."""
    return CCA()(x, y)


def svcca(x: Any, y: Any, variance: float = 0.99) -> float:
    """Return the mean canonical correlation of the strongest directions of x and y; see :class:`SVCCA`."""
    return SVCCA(variance)(x, y)


def procrustes(x: Any, y: Any) -> float:
    """Return the Procrustes similarity of x (n, dx) and y (n, dy); see :class:`Procrustes`."""
    return Procrustes()(x, y)
