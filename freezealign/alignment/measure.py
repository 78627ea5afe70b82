"""What a measure of alignment is: a description of each space on its own, and a comparison of two descriptions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from freezealign.alignment.moments import CrossMoments
from freezealign.alignment.rows import Rows, check_pair

FEW = 1000
"""Items up to which spaces are described by matrices over all pairs of items; of more, no such matrix is ever held."""
TILE_ELEMENTS = 2**23
ROUNDING = 1e-3
"""How far above 1 a value may be: float32 sums of many items."""
Indices = Sequence[tuple[int, int]]


class Measure(ABC):
    """How alike two spaces are in which the same n items lie: 1 for equal ones, near 0 for unrelated ones.

    Up to ``FEW`` items, a space becomes a matrix of unit norm over pairs of items, and the measure is the inner product
    of two such matrices. Any number of items is measured without them, to the same value.

    Attributes:
        name: As in ``METRICS``.
        least: Items it needs.
    """

    name: str
    least = 4

    @abstractmethod
    def kernel(self, x: Tensor) -> Tensor:
        """Return the similarities of few items to each other, (n, n), from their vectors (n, d)."""

    @abstractmethod
    def describe(self, kernel: Tensor) -> Tensor:
        """Return what the measure sees of similarities (n, n), of these items or of some of them: of unit norm."""

    def select(self, matrix: Tensor, index: Tensor) -> Tensor:
        """Return a kernel or a description of some of its items, or of all in another order."""
        return matrix.index_select(0, index).index_select(1, index)  # three times as fast as indexing by both

    def compare(self, first: Tensor, second: Tensor) -> float:
        """Return the measure from two descriptions."""
        return float((first * second).sum())

    def compare_all(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Return the measure of every description of one side with every one of the other: (len, len)."""
        one, other = (torch.stack([matrix.flatten() for matrix in side]) for side in (first, second))
        return one @ other.T

    @abstractmethod
    def measure_many(self, xs: Sequence[Rows], ys: Sequence[Rows], pairs: Indices) -> list[float]:
        """Return the measure of pairs (i, j) of ``xs[i]`` and ``ys[j]``, for any number of items."""

    def measure_pairs(self, xs: Sequence[Rows], ys: Sequence[Rows], pairs: Indices) -> list[float]:
        """Return the measure of pairs (i, j) of ``xs[i]`` and ``ys[j]``; what concerns one space is done once."""
        if len(xs[0]) > FEW:
            return [self.checked(value) for value in self.measure_many(xs, ys, pairs)]
        first = {i: self.describe(self.kernel(xs[i].all()).double()) for i in {i for i, _ in pairs}}
        second = {j: self.describe(self.kernel(ys[j].all()).double()) for j in {j for _, j in pairs}}
        return [self.checked(self.compare(first[i], second[j])) for i, j in pairs]

    def checked(self, value: float) -> float:
        """Return a value of the measure.

        Raises:
            ValueError: If it is none.
        """
        if math.isfinite(value) and abs(value) < 1 + ROUNDING:
            return value
        raise ValueError(
            f"{self.name} is not defined here ({value}): in one of the spaces all items are equally far from each "
            "other, or its numbers are too large or too small to be squared."
        )

    def __call__(self, x: Any, y: Any) -> float:
        """Return the measure of vectors x (n, dx) and y (n, dy), NumPy or torch; row i of both is one item.

        Raises:
            ValueError: If the counts differ, there are too few items, one space is constant, or holds NaN.
        """
        x, y = Rows(x, "x"), Rows(y, "y")
        check_pair(x, y, self.least)
        return self.measure_pairs([x], [y], [(0, 0)])[0]


class MomentMeasure(Measure):
    """A measure that follows from sums over the items: one pass in O(d²) memory, mergeable.

    Attributes:
        double: Whether the sums need products in float64.
    """

    double = False

    def moments(self) -> CrossMoments:
        """Return empty sums."""
        return CrossMoments(self.double)

    @abstractmethod
    def from_moments(self, cross: CrossMoments, own_x: CrossMoments, own_y: CrossMoments) -> float:
        """Return the measure from the sums over x with y, x with x and y with y."""

    def measure_many(self, xs: Sequence[Rows], ys: Sequence[Rows], pairs: Indices) -> list[float]:
        """Read every space once, whatever the number of pairs."""
        own_x = {i: self.moments() for i, _ in pairs}
        own_y = {j: self.moments() for _, j in pairs}
        cross = {pair: self.moments() for pair in pairs}
        for batches_x, batches_y in zip(_together(xs, own_x), _together(ys, own_y), strict=True):
            for i, x in batches_x.items():
                own_x[i].update(x, x)
            for j, y in batches_y.items():
                own_y[j].update(y, y)
            for i, j in pairs:
                cross[i, j].update(batches_x[i], batches_y[j])
        return [self.from_moments(cross[i, j], own_x[i], own_y[j]) for i, j in pairs]


def _together(spaces: Sequence[Rows], wanted: Any) -> Iterator[dict[int, Tensor]]:
    """Yield chunks of several spaces side by side."""
    for chunks in zip(*(spaces[i].chunks() for i in wanted), strict=True):
        yield dict(zip(wanted, chunks))


def tiles(n: int, width: int) -> Iterator[slice]:
    """Yield runs of n items so long that a tile (run, width) stays within ``TILE_ELEMENTS``."""
    step = max(1, TILE_ELEMENTS // width)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def unit_norm(matrix: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return a matrix divided by its Frobenius norm; NaN where that is only rounding beside the norm of ``scale``."""
    norm = torch.linalg.norm(matrix)
    if scale is not None and norm <= 10 * torch.finfo(matrix.dtype).eps * torch.linalg.norm(scale):
        return torch.full_like(matrix, math.nan)
    return matrix / norm
