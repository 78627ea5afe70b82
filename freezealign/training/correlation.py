"""Canonical correlation from sums: one pass over the pairs gives every fold of a cross-validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from freezealign.moments import PAIR, Moments

SHRINKAGES = (0.1, 0.3, 0.6, 1.0, 2.0, 4.0)
Ridges = tuple[float, float]


class AffineMap(NamedTuple):
    """``x -> weight @ x + bias``."""

    weight: Tensor
    bias: Tensor


def whitening(variances: Tensor, ridge: float) -> Tensor:
    """Return what whitening multiplies each eigenvector's coordinate by: ``(variance + ridge · total) ** -0.5``."""
    ridged = variances + ridge * variances.sum()
    return ridged.clamp_min(torch.finfo(ridged.dtype).eps).rsqrt()


class Correlation:
    """The covariances of pairs of vectors x (dx) and y (dy), in the coordinates of the eigenvectors ``x`` and ``y``."""

    def __init__(self, moments: Moments) -> None:
        xx, xy, yy = (moments.covariance(*block) for block in PAIR)
        (self.x_variances, self.x), (self.y_variances, self.y) = torch.linalg.eigh(xx), torch.linalg.eigh(yy)
        self.core = self.x.T @ xy @ self.y

    def directions(self, ridges: Ridges) -> tuple[Tensor, Tensor]:
        """Return the directions (k, dx) and (k, dy), most correlated first, each scaled by its correlation.

        They come from the smaller Gram matrix of the whitened cross-covariance, which is many times as fast as its
        singular value decomposition. ``ridges`` are, for x and y, the share of the total variance that is added to
        every variance before whitening.
        """
        scale_x, scale_y = whitening(self.x_variances, ridges[0]), whitening(self.y_variances, ridges[1])
        whitened = scale_x[:, None] * self.core * scale_y
        if len(scale_x) < len(scale_y):
            b, a = _weighted(whitened.T)
        else:
            a, b = _weighted(whitened)
        return a * scale_x, b * scale_y


def _weighted(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the left and right singular vectors of a tall matrix as rows, each times its singular value."""
    values, right = torch.linalg.eigh(matrix.T @ matrix)
    right = right.flip(1)
    return (matrix @ right).T, values.flip(0).clamp_min(0).sqrt()[:, None] * right.T


def correlated_directions(moments: Moments, directions: int, ridges: Ridges) -> tuple[AffineMap, AffineMap]:
    """Return for x and y the affine maps to at most so many of their :meth:`Correlation.directions`."""
    found = Correlation(moments)
    a, b = found.directions(ridges)
    first, second = a[:directions] @ found.x.T, b[:directions] @ found.y.T
    return AffineMap(first, -first @ moments.mean(0)), AffineMap(second, -second @ moments.mean(1))


def total(parts: Iterable[Moments]) -> Moments:
    """Return the moments of the pairs of all parts."""
    merged = Moments(double=True)
    for part in parts:
        merged.merge(part)
    return merged


def choose_shrinkage(folds: Sequence[Moments]) -> float:
    """Return the shrinkage whose directions tell pairs that belong together best from those that do not.

    Shrinkage is the ridge in units of the mean variance of x, and of y. Each fold is judged by directions from the
    others, by what follows from its sums alone: the detectability index d' = E[s⁺] / sd[s⁻], where s = ⟨A x, B y⟩ of
    centred pairs that belong together or do not; E[s⁺] = tr(A Cxy Bᵀ) and Var[s⁻] = tr(A Cxx Aᵀ B Cyy Bᵀ).
    Source of the index: Green & Swets 1966.
    """
    scores = torch.zeros(len(SHRINKAGES), dtype=torch.float64)
    for number, held_out in enumerate(folds):
        train = total(fold for other, fold in enumerate(folds) if other != number)
        if held_out.n == 0 or train.n < 2:
            continue
        found = Correlation(train)
        xx, xy, yy = (held_out.covariance(*block) for block in PAIR)
        xx, xy, yy = found.x.T @ xx @ found.x, found.x.T @ xy @ found.y, found.y.T @ yy @ found.y
        for place, shrinkage in enumerate(SHRINKAGES):
            a, b = found.directions((shrinkage / len(xx), shrinkage / len(yy)))
            together = (a @ xy * b).sum()
            apart = ((a @ xx @ a.T) * (b @ yy @ b.T)).sum().clamp_min(torch.finfo(torch.float64).tiny)
            scores[place] += held_out.n * (together / apart.sqrt())
    return SHRINKAGES[int(scores.argmax())]
