"""Order: which pairs make each batch, as a function of seed and epoch only.

Up to a window of pairs, every order of all of them is as likely as any other. Beyond it, chunks of neighbours come in
random order, and pairs are shuffled among the chunks of a window: reads stay long, and memory does not grow with the
data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from freezealign.features.columns import neighbours

CHUNK = 256
"""Neighbours that are read together where the data is larger than the window."""


class Draw(NamedTuple):
    """Pairs by position (n,), and for each a number in [0, 1) that draws one of its rows in each modality (n,)."""

    positions: np.ndarray
    row_draws: np.ndarray

    def rows(self, start: int, stop: int | None = None) -> Draw:
        """Return some of them."""
        return Draw(self.positions[start:stop], self.row_draws[start:stop])


class Order:
    """Draws batches from one or several data sets that are numbered through.

    Args:
        sizes: Pairs of each data set.
        batch_size: Pairs a batch; the last ones of an epoch that do not fill a batch wait for the next epoch's order.
        seed: Of the order.
        weights: How often a pair of each data set is drawn in an epoch; 0.1 is once in ten epochs.
        window: Pairs that are shuffled among each other; all of them by default.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        window: int | None = None,
    ) -> None:
        self.sizes, self.seed = list(sizes), seed
        self.weights = list(weights) if weights else [1.0] * len(sizes)
        self.starts = np.cumsum([0, *self.sizes])
        self.chunk = 1 if window is None or self.starts[-1] <= window else CHUNK
        self.pairs = sum(map(self._least, range(len(self.sizes))))
        if self.pairs < 2:
            raise ValueError(f"training needs at least 2 pairs, got {self.pairs}: a pair alone has no negatives.")
        self.batch_size = min(batch_size, self.pairs)
        self.window = max(window or 0, 4 * self.batch_size) if self.chunk > 1 else int(self.starts[-1])

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return self.pairs // self.batch_size

    def epoch(self, number: int) -> Iterator[list[Draw]]:
        """Yield the batches of one epoch, those of a window together."""
        rng = np.random.default_rng([self.seed, number])
        chunks = rng.permutation(np.concatenate([self._chunks(part, number) for part in range(len(self.sizes))]))
        left, missing = Draw(np.arange(0), np.zeros(0)), len(self)
        for start in range(0, len(chunks), per_window := math.ceil(self.window / self.chunk)):
            parts, numbers = chunks[start : start + per_window].T
            starts = self.starts[parts] + numbers * self.chunk
            ends = np.minimum(starts + self.chunk, self.starts[parts + 1])
            fresh = rng.permutation(neighbours(starts, ends - starts))
            draw = Draw(*(np.concatenate(both) for both in zip(left, (fresh, rng.random(len(fresh))))))
            full = min(len(draw.positions) // self.batch_size, missing)
            yield [draw.rows(i * self.batch_size, (i + 1) * self.batch_size) for i in range(full)]
            left, missing = draw.rows(full * self.batch_size), missing - full

    def _chunks(self, part: int, epoch: int) -> np.ndarray:
        """Return (data set, chunk) of the chunks of one data set that an epoch draws.

        Passes over the data set follow one another, each in an order of its own; an epoch takes its share of them.
        """
        count = math.ceil(self.sizes[part] / self.chunk)
        share = self.weights[part] * count
        first, last = math.floor((epoch - 1) * share), math.floor(epoch * share)
        passes = range(first // max(count, 1), math.ceil(last / max(count, 1)))
        orders = [np.random.default_rng([self.seed, part, number]).permutation(count) for number in passes]
        chunks = np.concatenate([np.arange(0), *orders])[first - passes.start * count :][: last - first]
        return np.stack([np.full(len(chunks), part), chunks], axis=1)

    def _least(self, part: int) -> int:
        """Return how many pairs of a data set every epoch draws at least."""
        weight, size = self.weights[part], self.sizes[part]
        if self.chunk == 1 or weight == int(weight):
            return int(weight * size)
        return max(0, int(weight * size) - self.chunk * math.ceil(weight + 2))
