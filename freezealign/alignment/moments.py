"""Sums over pairs of vectors, from which alignment follows without ever holding an n x n matrix."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

ROUNDING = 1e-9
"""Of an HSIC in squares of the total variance: what is smaller is not more than sums in float32 leave."""


class CrossMoments:
    """Sums over n pairs of vectors x (dx) and y (dy); O(dx · dy) memory, one pass, mergeable.

    Products of a batch are taken in its own precision and added up in float64. Vectors are shifted by the means of the
    first batch, which leaves what is computed from the sums as it is and keeps digits.

    Args:
        double: Take the products in float64 as well: where small variances count.

    Attributes:
        n: Pairs so far.
        sum_x: (dx,) Σ x, and ``sum_y`` (dy,) Σ y.
        product: (dx, dy) Σ x yᵀ.
        weighted_x: (dx,) Σ ‖y‖² x, and ``weighted_y`` (dy,) Σ ‖x‖² y.
        norms_x: Σ ‖x‖², and ``norms_y`` Σ ‖y‖²; ``norms_xy`` Σ ‖x‖² ‖y‖².
    """

    def __init__(self, double: bool = False) -> None:
        self.double, self.n = double, 0

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add a batch: (B, dx) and (B, dy)."""
        if not len(x):
            return
        dtype = torch.float64 if self.double else torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(dtype)
        if not self.n:
            self._begin(x.mean(0), y.mean(0))
        x, y = x - self.shift_x, y - self.shift_y
        squares_x, squares_y = (x * x).sum(1), (y * y).sum(1)
        self.n += len(x)
        self.sum_x += x.sum(0)
        self.sum_y += y.sum(0)
        self.product += x.T @ y
        self.weighted_x += x.T @ squares_y
        self.weighted_y += y.T @ squares_x
        self.norms_x += squares_x.sum().double()
        self.norms_y += squares_y.sum().double()
        self.norms_xy += squares_x.double() @ squares_y.double()

    def merge(self, other: CrossMoments) -> None:
        """Add the pairs of ``other``."""
        if not other.n:
            return
        if not self.n:
            self._begin(other.shift_x, other.shift_y)
        x, y = other.shift_x.double() - self.shift_x.double(), other.shift_y.double() - self.shift_y.double()
        xx, yy = x @ x, y @ y
        product_y, product_x = other.product @ y, other.product.T @ x
        self.n += other.n
        self.sum_x += other.sum_x + other.n * x
        self.sum_y += other.sum_y + other.n * y
        self.product += other.product + _outer(other.sum_x, y) + _outer(x, other.sum_y) + other.n * _outer(x, y)
        norms_x = other.norms_x + 2 * other.sum_x @ x + other.n * xx
        norms_y = other.norms_y + 2 * other.sum_y @ y + other.n * yy
        self.weighted_x += other.weighted_x + 2 * product_y + yy * other.sum_x + norms_y * x
        self.weighted_y += other.weighted_y + 2 * product_x + xx * other.sum_y + norms_x * y
        self.norms_x += norms_x
        self.norms_y += norms_y
        self.norms_xy += other.norms_xy + 2 * other.weighted_y @ y + 2 * other.weighted_x @ x + 4 * x @ product_y
        self.norms_xy += yy * norms_x + xx * (other.norms_y + 2 * other.sum_y @ y)

    def covariance(self) -> Tensor:
        """Return Σ (x - mean)(y - mean)ᵀ / n, (dx, dy)."""
        return (self.product - _outer(self.sum_x, self.sum_y) / self.n) / self.n

    def hsic(self, unbiased: bool = True) -> float:
        """Return the Hilbert–Schmidt independence criterion of linear kernels.

        Args:
            unbiased: HSIC₁ of Song et al. 2012 ("Feature Selection via Dependence Maximization", JMLR 13), which is 0
                on average for independent x and y; else the biased ‖cov‖², which grows with dx · dy / n.
        """
        if not unbiased:
            return float(self.covariance().square().sum())
        projected = self.product @ self.sum_y
        crossed = self.sum_x @ projected - self.weighted_x @ self.sum_x - self.weighted_y @ self.sum_y + self.norms_xy
        return hsic1(
            self.n,
            trace=float(self.product.square().sum() - self.norms_xy),
            total_x=float(self.sum_x @ self.sum_x - self.norms_x),
            total_y=float(self.sum_y @ self.sum_y - self.norms_y),
            crossed=float(crossed),
        )

    def own_hsic(self, unbiased: bool = True) -> float:
        """Return :meth:`hsic` of a space with itself; 0 where it is no more than rounding."""
        found, total = self.hsic(unbiased), float(self.norms_x - self.sum_x @ self.sum_x / self.n) / self.n
        return found if found > ROUNDING * total**2 else 0.0

    def _begin(self, shift_x: Tensor, shift_y: Tensor) -> None:
        self.shift_x, self.shift_y = shift_x, shift_y
        zeros = partial(torch.zeros, dtype=torch.float64, device=shift_x.device)
        self.sum_x, self.weighted_x = zeros(2, len(shift_x))
        self.sum_y, self.weighted_y = zeros(2, len(shift_y))
        self.product = zeros(len(shift_x), len(shift_y))
        self.norms_x, self.norms_y, self.norms_xy = zeros(3)


def hsic1(n: int, trace: float, total_x: float, total_y: float, crossed: float) -> float:
    """Return HSIC₁ from sums over kernel matrices K and L whose diagonals are set to zero (Song et al. 2012, eq. 5).

    Args:
        n: Items, at least 4.
        trace: tr(K L).
        total_x: 1ᵀ K 1, and ``total_y`` 1ᵀ L 1.
        total_y: See ``total_x``.
        crossed: 1ᵀ K L 1.
    """
    inner = trace + total_x * total_y / ((n - 1) * (n - 2)) - 2 / (n - 2) * crossed
    return inner / (n * (n - 3))


def cosine(cross: float, own_x: float, own_y: float) -> float:
    """Return ``cross / sqrt(own_x · own_y)``; NaN where a space has nothing to compare."""
    return cross / math.sqrt(own_x * own_y) if own_x > 0 and own_y > 0 else math.nan


def _outer(x: Tensor, y: Tensor) -> Tensor:
    return x[:, None] * y
