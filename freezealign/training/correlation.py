"""Canonical correlation from sums: one pass over the pairs gives every fold of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from freezealign.moments import Moments

SHRINKAGES = (0.1, 0.3, 0.6, 1.0, 2.0, 4.0)
Ridges = tuple[float, float]
Views = tuple[Sequence[int], Sequence[int]]
"""Which spaces of the moments are views of x, and which of y."""
ONE_EACH: Views = ((0,), (1,))


class AffineMap(NamedTuple):
    """``x -> weight @ x + bias``."""

    weight: Tensor
    bias: Tensor


def whitening(variances: Tensor, ridge: float) -> Tensor:
    """Return what whitening multiplies each eigenvector's coordinate by: ``(variance + ridge · total) ** -0.5``."""
    ridged = variances + ridge * variances.sum()
    return ridged.clamp_min(torch.finfo(ridged.dtype).eps).rsqrt()


def covariances(moments: Moments, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """Return the covariance of some spaces, side by side, with others."""
    return torch.cat([torch.cat([moments.covariance(i, j) for j in columns], dim=1) for i in rows])


class Side:
    """What one tower sees of the pairs: one view or several, each in the coordinates of its own eigenvectors.

    Each view is whitened by itself, so that what it says counts on its own: a patch branch can be used without CLS.
    """

    def __init__(self, moments: Moments, views: Sequence[int]) -> None:
        spectra = [torch.linalg.eigh(moments.covariance(view, view)) for view in views]
        self.variances = [spectrum.eigenvalues for spectrum in spectra]
        self.vectors = torch.block_diag(*(spectrum.eigenvectors for spectrum in spectra))
        self.means = [moments.mean(view) for view in views]

    def scale(self, ridge: float) -> Tensor:
        """Return the :func:`whitening` of every coordinate."""
        return torch.cat([whitening(variances, ridge) for variances in self.variances])

    def maps(self, directions: Tensor) -> list[AffineMap]:
        """Return the map of each view; together, they give the centred item's coordinates along the directions."""
        weights = (directions @ self.vectors.T).split([len(mean) for mean in self.means], dim=1)
        return [AffineMap(weight, -weight @ mean) for weight, mean in zip(weights, self.means)]


class Correlation:
    """The covariances of pairs in the coordinates of the eigenvectors of both sides, ``x`` and ``y``."""

    def __init__(self, moments: Moments, views: Views) -> None:
        self.x, self.y = (Side(moments, side) for side in views)
        self.core = self.x.vectors.T @ covariances(moments, *views) @ self.y.vectors

    def directions(self, ridges: Ridges) -> tuple[Tensor, Tensor]:
        """Return the directions (k, dx) and (k, dy), most correlated first, each scaled by its correlation.

        They come from the smaller Gram matrix of the whitened cross-covariance, which is many times as fast as its
        singular value decomposition. ``ridges`` are, for x and y, the share of a view's total variance that is added to
        each of its variances before whitening.
        """
        scale_x, scale_y = self.x.scale(ridges[0]), self.y.scale(ridges[1])
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


def correlated_directions(
    moments: Moments, directions: int, ridges: Ridges, views: Views = ONE_EACH
) -> tuple[list[AffineMap], list[AffineMap]]:
    """Return for the views of x and of y the affine maps to at most so many of their :meth:`Correlation.directions`."""
    found = Correlation(moments, views)
    a, b = found.directions(ridges)
    return found.x.maps(a[:directions]), found.y.maps(b[:directions])


def total(parts: Sequence[Moments]) -> Moments:
    """Return the moments of the pairs of all parts."""
    merged = Moments(parts[0].blocks)
    for part in parts:
        merged.merge(part)
    return merged


def choose_shrinkage(folds: Sequence[Moments], views: Views = ONE_EACH) -> float:
    """Return the shrinkage whose directions tell pairs that belong together best from those that do not.

    Shrinkage is the ridge in units of the mean variance of a view. Each fold is judged by directions from the
    others, by what follows from its sums alone: the detectability index d' = E[s⁺] / sd[s⁻], where s = ⟨A x, B y⟩ of
    centred pairs that belong together or do not; E[s⁺] = tr(A Cxy Bᵀ) and Var[s⁻] = tr(A Cxx Aᵀ B Cyy Bᵀ).
    Source of the index: Green & Swets 1966.
    """
    scores = torch.zeros(len(SHRINKAGES), dtype=torch.float64)
    for number, held_out in enumerate(folds):
        train = total([fold for other, fold in enumerate(folds) if other != number])
        if held_out.n == 0 or train.n < 2:
            continue
        found = Correlation(train, views)
        x, y = found.x.vectors, found.y.vectors
        xx, yy = (covariances(held_out, side, side) for side in views)
        xx, xy, yy = x.T @ xx @ x, x.T @ covariances(held_out, *views) @ y, y.T @ yy @ y
        first, second = len(found.x.means[0]), len(found.y.means[0])
        for place, shrinkage in enumerate(SHRINKAGES):
            a, b = found.directions((shrinkage / first, shrinkage / second))
            together = (a @ xy * b).sum()
            apart = ((a @ xx @ a.T) * (b @ yy @ b.T)).sum().clamp_min(torch.finfo(torch.float64).tiny)
            scores[place] += held_out.n * (together / apart.sqrt())
    return SHRINKAGES[int(scores.argmax())]
