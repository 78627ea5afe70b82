"""What a measure of alignment is: a description of each space on its own, and a comparison of two descriptions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from freezealign.alignment.vectors import Vectors, check_counts, check_spaces
from freezealign.moments import PAIR, Moments

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

    @abstractmethod
    def measure_many(self, spaces: Sequence[Vectors], pairs: Indices) -> list[float]:
        """Return the measure of pairs (i, j) of ``spaces``, for any number of items."""

    def measure_pairs(self, xs: Sequence[Vectors], ys: Sequence[Vectors], pairs: Indices) -> list[float]:
        """Return the measure of pairs (i, j) of ``xs[i]`` and ``ys[j]``; what concerns one space is done once."""
        spaces, pairs = [*xs, *ys], [(i, len(xs) + j) for i, j in pairs]
        if len(xs[0]) > FEW:
            values = self.measure_many(spaces, pairs)
        else:
            described = [self.describe(self.kernel(space.all()).double()) for space in spaces]
            values = [self.compare(described[i], described[j]) for i, j in pairs]
        return [self.checked(value, spaces[i].name, spaces[j].name) for value, (i, j) in zip(values, pairs)]

    def checked(self, value: float, x: str = "x", y: str = "y") -> float:
        """Return a value of the measure of two spaces of these names.

        Raises:
            ValueError: If it is none.
        """
        if math.isfinite(value) and abs(value) < 1 + ROUNDING:
            return value
        raise ValueError(
            f"{self.name} of {x} and {y} is not defined ({value}): in one of them all items are equally far from each "
            "other, or its numbers are too large or too small for squares in float64; divide them by their largest."
        )

    def __call__(self, x: Any, y: Any) -> float:
        """Return the measure of vectors x (n, dx) and y (n, dy), NumPy or torch; row i of both is one item.

        Raises:
            ValueError: If the counts differ, there are too few items, one space is constant, or holds NaN.
        """
        x, y = Vectors(x, "x"), Vectors(y, "y")
        check_counts(x, y)
        check_spaces([x, y], self.least)
        return self.measure_pairs([x], [y], [(0, 0)])[0]


class MomentMeasure(Measure):
    """A measure that follows from sums over the items: one pass in O(d²) memory, mergeable.

    Attributes:
        double: Whether the sums need products in float64; ``hsic``, whether they keep what HSIC needs.
    """

    double = False
    hsic = False

    def moments(self, blocks: Sequence[tuple[int, int]] = PAIR) -> Moments:
        """Return empty sums over spaces, of which the measure compares those that make a block."""
        return Moments(blocks, self.double, self.hsic)

    @abstractmethod
    def from_moments(self, moments: Moments, i: int, j: int) -> float:
        """Return the measure of two spaces from sums that hold their own blocks and that of both, all finite."""

    def value(self, moments: Moments, i: int = 0, j: int = 1) -> float:
        """Return the measure of two spaces from sums; NaN where these are not finite."""
        finite = all(product.isfinite().all() for product in moments.products.values())
        return self.from_moments(moments, i, j) if finite else math.nan

    def measure_many(self, spaces: Sequence[Vectors], pairs: Indices) -> list[float]:
        """Read every space once, whatever the number of pairs."""
        moments = self.moments([*pairs, *((k, k) for k in range(len(spaces)))])
        for batch in zip(*(space.chunks() for space in spaces), strict=True):
            moments.update(batch)
        return [self.value(moments, i, j) for i, j in pairs]


def item_tiles(n: int, width: int) -> Iterator[slice]:
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
