"""Canonical correlation from sums: one pass over the pairs gives every fold of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from freezealign.training.affine import AffineMap

SHRINKAGES = (0.1, 0.3, 0.6, 1.0, 2.0, 4.0)


class PairMoments:
    """Sums over pairs of vectors x (dx) and y (dy) from which means and covariances follow, in float64."""

    def __init__(self, dx: int, dy: int) -> None:
        self.dx, self.n = dx, 0.0
        self.total = torch.zeros(dx + dy, dtype=torch.float64)
        self.product = torch.zeros(dx + dy, dx + dy, dtype=torch.float64)

    def update(self, x: Tensor, y: Tensor, weight: float = 1.0) -> None:
        """Add a batch: (B, dx) and (B, dy), each pair counted ``weight`` times."""
        both = torch.cat([x, y], dim=1).to("cpu", torch.float64)
        self.n += weight * len(both)
        self.total += weight * both.sum(0)
        self.product.addmm_(both.T, both, alpha=weight)

    @classmethod
    def sum(cls, parts: Sequence[PairMoments]) -> PairMoments:
        """Return the moments of all pairs of ``parts``."""
        merged = cls(parts[0].dx, len(parts[0].total) - parts[0].dx)
        for part in parts:
            merged.n += part.n
            merged.total += part.total
            merged.product += part.product
        return merged

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the covariance of x, of y, and of x with y."""
        mean = self.total / self.n
        covariance = self.product / self.n - torch.outer(mean, mean)
        return covariance[: self.dx, : self.dx], covariance[self.dx :, self.dx :], covariance[: self.dx, self.dx :]

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the mean of x and of y."""
        mean = self.total / self.n
        return mean[: self.dx], mean[self.dx :]


class Spectrum(NamedTuple):
    """A covariance matrix as eigenvalues and eigenvectors, from which it is whitened with any shrinkage."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, covariance: Tensor) -> Spectrum:
        """Decompose a covariance matrix (d, d)."""
        return cls(*torch.linalg.eigh(covariance))

    def whitener(self, shrinkage: float) -> Tensor:
        """Return ``(covariance + shrinkage · mean variance · identity) ** -0.5``."""
        values = self.values + shrinkage * self.values.mean()
        return (self.vectors * values.clamp_min(torch.finfo(values.dtype).eps).rsqrt()) @ self.vectors.T


def correlated_directions(moments: PairMoments, directions: int, shrinkage: float) -> tuple[AffineMap, AffineMap]:
    """Return for x and y the affine maps to their most correlated directions, each scaled by its correlation.

    Args:
        moments: Of the training pairs.
        directions: How many to keep at most.
        shrinkage: Share of the mean variance that is added to every variance before whitening.
    """
    xx, yy, xy = moments.covariances()
    weights = _directions(Spectrum.of(xx), Spectrum.of(yy), xy, directions, shrinkage)
    maps = [AffineMap(weight, -weight @ mean) for weight, mean in zip(weights, moments.means())]
    return maps[0], maps[1]


def _directions(x: Spectrum, y: Spectrum, xy: Tensor, directions: int, shrinkage: float) -> tuple[Tensor, Tensor]:
    whiten_x, whiten_y = x.whitener(shrinkage), y.whitener(shrinkage)
    left, correlations, right = torch.linalg.svd(whiten_x @ xy @ whiten_y, full_matrices=False)
    kept = correlations[:directions, None]
    return kept * (left.T[:directions] @ whiten_x), kept * (right[:directions] @ whiten_y)


def choose_shrinkage(folds: Sequence[PairMoments], shrinkages: Sequence[float] = SHRINKAGES) -> float:
    """Return the shrinkage whose directions tell pairs that belong together best from those that do not.

    Each fold is judged by directions from the others, by what follows from its sums alone: the detectability index
    d' = E[s⁺] / sd[s⁻], where s = ⟨A x, B y⟩ of centred pairs that belong together or do not; E[s⁺] = tr(A Cxy Bᵀ) and
    Var[s⁻] = tr(A Cxx Aᵀ B Cyy Bᵀ). Source of the index: Green & Swets 1966.
    """
    scores = torch.zeros(len(shrinkages), dtype=torch.float64)
    for number, held_out in enumerate(folds):
        if held_out.n == 0:
            continue
        train = PairMoments.sum([fold for other, fold in enumerate(folds) if other != number])
        if train.n < 2:
            continue
        xx, yy, xy = train.covariances()
        spectra = Spectrum.of(xx), Spectrum.of(yy)
        for place, shrinkage in enumerate(shrinkages):
            a, b = _directions(*spectra, xy, len(xx), shrinkage)
            scores[place] += held_out.n * _detectability(held_out, a, b)
    return shrinkages[int(scores.argmax())]


def _detectability(moments: PairMoments, a: Tensor, b: Tensor) -> Tensor:
    xx, yy, xy = moments.covariances()
    together = (a @ xy * b).sum()
    apart = ((a @ xx @ a.T) * (b @ yy @ b.T)).sum().clamp_min(torch.finfo(torch.float64).tiny)
    return together / apart.sqrt()
