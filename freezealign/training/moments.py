"""Canonical correlation from sums: one pass over the pairs gives every fold of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from freezealign.moments import PAIR, Moments
from freezealign.training.affine import AffineMap

SHRINKAGES = (0.1, 0.3, 0.6, 1.0, 2.0, 4.0)
Ridges = tuple[float, float]


class PairMoments(Moments):
    """Sums over pairs of vectors x (dx) and y (dy) from which means and covariances follow, in float64 on the CPU."""

    def __init__(self) -> None:
        super().__init__(PAIR, double=True)

    def update(self, spaces: Sequence[Tensor], weight: float = 1.0) -> None:
        """Add a batch: (B, dx) and (B, dy), each pair counted ``weight`` times."""
        super().update([space.cpu() for space in spaces], weight)

    @classmethod
    def sum(cls, parts: Sequence[PairMoments]) -> PairMoments:
        """Return the moments of all pairs of ``parts``."""
        merged = cls()
        for part in parts:
            merged.merge(part)
        return merged

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the covariance of x, of y, and of x with y."""
        return self.covariance(0, 0), self.covariance(1, 1), self.covariance(0, 1)

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the mean of x and of y."""
        return self.mean(0), self.mean(1)


class Spectrum(NamedTuple):
    """A covariance matrix as eigenvalues (d,) and eigenvectors (d, d), from which it is whitened with any ridge."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, covariance: Tensor) -> Spectrum:
        """Decompose a covariance matrix (d, d)."""
        return cls(*torch.linalg.eigh(covariance))

    def scales(self, ridge: float) -> Tensor:
        """Return what whitening multiplies each eigenvector's coordinate by: ``(value + ridge · total) ** -0.5``."""
        values = self.values + ridge * self.values.sum()
        return values.clamp_min(torch.finfo(values.dtype).eps).rsqrt()


def correlated_directions(moments: PairMoments, directions: int, ridges: Ridges) -> tuple[AffineMap, AffineMap]:
    """Return for x and y the affine maps to their most correlated directions, each scaled by its correlation.

    Args:
        moments: Of the training pairs.
        directions: How many to keep at most.
        ridges: For x and y, the share of the total variance that is added to every variance before whitening.
    """
    xx, yy, xy = moments.covariances()
    x, y = Spectrum.of(xx), Spectrum.of(yy)
    a, b = _directions(x, y, x.vectors.T @ xy @ y.vectors, ridges)
    weights = a[:directions] @ x.vectors.T, b[:directions] @ y.vectors.T
    maps = [AffineMap(weight, -weight @ mean) for weight, mean in zip(weights, moments.means())]
    return maps[0], maps[1]


def _directions(x: Spectrum, y: Spectrum, core: Tensor, ridges: Ridges) -> tuple[Tensor, Tensor]:
    """Return the directions (k, dx) and (k, dy) in the coordinates of the eigenvectors, most correlated first.

    They come from the smaller Gram matrix of the whitened cross-covariance, which is many times as fast as its singular
    value decomposition.

    Args:
        x: Of the covariance of x.
        y: Of that of y.
        core: (dx, dy), the covariance of x with y in these coordinates.
        ridges: As in :func:`correlated_directions`.
    """
    scale_x, scale_y = x.scales(ridges[0]), y.scales(ridges[1])
    whitened = scale_x[:, None] * core * scale_y
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


def choose_shrinkage(folds: Sequence[PairMoments]) -> float:
    """Return the shrinkage whose directions tell pairs that belong together best from those that do not.

    Shrinkage is the ridge in units of the mean variance of x, and of y. Each fold is judged by directions from the
    others, by what follows from its sums alone: the detectability index d' = E[s⁺] / sd[s⁻], where s = ⟨A x, B y⟩ of
    centred pairs that belong together or do not; E[s⁺] = tr(A Cxy Bᵀ) and Var[s⁻] = tr(A Cxx Aᵀ B Cyy Bᵀ).
    Source of the index: Green & Swets 1966.
    """
    scores = torch.zeros(len(SHRINKAGES), dtype=torch.float64)
    for number, held_out in enumerate(folds):
        if held_out.n == 0:
            continue
        train = PairMoments.sum([fold for other, fold in enumerate(folds) if other != number])
        if train.n < 2:
            continue
        xx, yy, xy = train.covariances()
        x, y = Spectrum.of(xx), Spectrum.of(yy)
        core, judged = x.vectors.T @ xy @ y.vectors, _rotated(held_out, x.vectors, y.vectors)
        for place, shrinkage in enumerate(SHRINKAGES):
            a, b = _directions(x, y, core, (shrinkage / len(xx), shrinkage / len(yy)))
            scores[place] += held_out.n * _detectability(*judged, a, b)
    return SHRINKAGES[int(scores.argmax())]


def _rotated(moments: PairMoments, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the covariances of ``moments`` in the coordinates of the columns of ``x`` and ``y``."""
    xx, yy, xy = moments.covariances()
    return x.T @ xx @ x, y.T @ yy @ y, x.T @ xy @ y


def _detectability(xx: Tensor, yy: Tensor, xy: Tensor, a: Tensor, b: Tensor) -> Tensor:
    together = (a @ xy * b).sum()
    apart = ((a @ xx @ a.T) * (b @ yy @ b.T)).sum().clamp_min(torch.finfo(torch.float64).tiny)
    return together / apart.sqrt()
