"""Sums over items from which means, covariances and independence follow: one pass, mergeable, no n x n matrix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

Block = tuple[int, int]
PAIR: tuple[Block, ...] = ((0, 0), (0, 1), (1, 1))
"""All that two spaces have among them."""
ROUNDING = 1e-9
"""Of an HSIC in squares of the total variance: what is smaller is not more than sums in float32 leave."""


class Moments:
    """Weighted sums over items that lie in several spaces, each of a width of its own.

    Products of a batch are taken in its own precision and added up in float64. Vectors are shifted by the means of the
    first batch, which leaves what is computed from the sums as it is and keeps digits.

    Args:
        blocks: Pairs of spaces by position, (i, j): of these there is a covariance.
        double: Take the products in float64 as well: where small variances count.
        hsic: Keep what :meth:`hsic` needs too.

    Attributes:
        n: Items so far, each counted with its weight.
        totals: Of each space (d,) Σ x; ``norms``, of each space Σ ‖x‖², are kept with ``hsic``.
        products: Of each block (di, dj) Σ x yᵀ; with ``hsic`` also ``norm_products``, of each block Σ ‖x‖² ‖y‖².
        weighted: Of each block and its reverse (di,) Σ ‖y‖² x, with ``hsic``.
    """

    def __init__(self, blocks: Sequence[Block] = PAIR, double: bool = False, hsic: bool = False) -> None:
        self.blocks, self.double, self.keeps_hsic, self.n = list(blocks), double, hsic, 0.0

    def update(self, spaces: Sequence[Tensor], weight: float = 1.0) -> None:
        """Add a batch of items: their vectors (B, d) in each space, each item counted ``weight`` times."""
        if not len(spaces[0]):
            return
        if self.double:
            spaces = [space.double() for space in spaces]
        if not self.n:
            self._begin([space.mean(0) for space in spaces])
        spaces = [space - shift for space, shift in zip(spaces, self.shifts)]
        self.n += weight * len(spaces[0])
        for total, space in zip(self.totals, spaces):
            total.add_(space.sum(0), alpha=weight)
        for i, j in self.blocks:
            x, y = _alike(spaces[i], spaces[j])
            self.products[i, j].add_(x.T @ y, alpha=weight)
        if not self.keeps_hsic:
            return
        squares = [(space * space).sum(1) for space in spaces]
        for norm, square in zip(self.norms, squares):
            norm.add_(square.sum(), alpha=weight)
        for i, j in self.weighted:
            x, of_other = _alike(spaces[i], squares[j])
            self.weighted[i, j].add_(x.T @ of_other, alpha=weight)
        for i, j in self.blocks:
            self.norm_products[i, j] += weight * (squares[i].double() @ squares[j].double())

    def merge(self, other: Moments) -> None:
        """Add the items of ``other``, which is of the same spaces and blocks."""
        if not other.n:
            return
        if not self.n:
            self._begin(other.shifts)
        moves = [theirs.double() - mine.double() for theirs, mine in zip(other.shifts, self.shifts)]
        if self.keeps_hsic:
            self._merge_norms(other, moves)
        for i, j in self.blocks:
            self.products[i, j].add_(other.products[i, j]).addr_(moves[i], other.totals[j])
            self.products[i, j].addr_(other.totals[i] + other.n * moves[i], moves[j])
        for total, theirs, move in zip(self.totals, other.totals, moves):
            total.add_(theirs + other.n * move)
        self.n += other.n

    def _merge_norms(self, other: Moments, moves: Sequence[Tensor]) -> None:
        lengths = [move @ move for move in moves]
        norms = [
            norm + 2 * total @ move + other.n * length
            for norm, total, move, length in zip(other.norms, other.totals, moves, lengths)
        ]
        for norm, moved in zip(self.norms, norms):
            norm.add_(moved)
        for i, j in self.blocks:
            x, y = moves[i], moves[j]
            products = {(i, j): other.products[i, j] @ y, (j, i): other.products[i, j].T @ x}
            for (a, b), product in products.items():
                moved = other.weighted[a, b] + 2 * product + lengths[b] * other.totals[a] + norms[b] * moves[a]
                self.weighted[a, b] += moved
            moved = other.norm_products[i, j] + 2 * other.weighted[j, i] @ y + 2 * other.weighted[i, j] @ x
            moved += 4 * x @ products[i, j] + lengths[j] * norms[i]
            self.norm_products[i, j] += moved + lengths[i] * (other.norms[j] + 2 * other.totals[j] @ y)

    def mean(self, i: int) -> Tensor:
        """Return the mean of a space, (d,)."""
        return self.shifts[i].double() + self.totals[i] / self.n

    def covariance(self, i: int, j: int) -> Tensor:
        """Return Σ (x - mean)(y - mean)ᵀ / n of a block or its reverse, (di, dj)."""
        if (i, j) not in self.products:
            return self.covariance(j, i).T
        return self.products[i, j].addr(self.totals[i], self.totals[j], alpha=-1 / self.n) / self.n

    def hsic(self, i: int, j: int, unbiased: bool = True) -> float:
        """Return the Hilbert–Schmidt independence criterion of linear kernels, of items that count once.

        That of a space with itself is 0 where it is no more than rounding.

        Args:
            i: A space, ``j`` the other.
            j: See ``i``.
            unbiased: HSIC₁ of Song et al. 2012 ("Feature Selection via Dependence Maximization", JMLR 13), which is 0
                on average for independent x and y; else the biased ‖cov‖², which grows with dx · dy / n.
        """
        if unbiased:
            x, y, product, norms = self.totals[i], self.totals[j], self.products[i, j], self.norm_products[i, j]
            found = hsic1(
                self.n,
                trace=float(product.square().sum() - norms),
                total_x=float(x @ x - self.norms[i]),
                total_y=float(y @ y - self.norms[j]),
                crossed=float(x @ (product @ y) - self.weighted[i, j] @ x - self.weighted[j, i] @ y + norms),
            )
        else:
            found = float(self.covariance(i, j).square().sum())
        rounding = ROUNDING * float(self.covariance(i, i).trace()) ** 2 if i == j else 0
        return 0.0 if i == j and found <= rounding else found

    def _begin(self, shifts: Sequence[Tensor]) -> None:
        self.shifts = list(shifts)
        zeros = partial(torch.zeros, dtype=torch.float64, device=shifts[0].device)
        widths = [len(shift) for shift in shifts]
        self.totals = [zeros(width) for width in widths]
        self.products = {(i, j): zeros(widths[i], widths[j]) for i, j in self.blocks}
        self.norms = [zeros(()) for _ in widths]
        self.weighted = {way: zeros(widths[way[0]]) for i, j in self.blocks for way in ((i, j), (j, i))}
        self.norm_products = {block: zeros(()) for block in self.blocks}


def hsic1(n: float, trace: float, total_x: float, total_y: float, crossed: float) -> float:
    """Return HSIC₁ from tr(K L), 1ᵀ K 1, 1ᵀ L 1 and 1ᵀ K L 1 over ``n`` ≥ 4 items (Song et al. 2012, eq. 5).

    The diagonals of the kernel matrices K and L are set to zero.
    """
    inner = trace + total_x * total_y / ((n - 1) * (n - 2)) - 2 / (n - 2) * crossed
    return inner / (n * (n - 3))


def _alike(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the finer precision of the two."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)
