"""Training batches of feature stores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from freezealign.features import FeatureStore
from freezealign.prefetch import prefetch
from freezealign.training.batches.base import TrainingBatch
from freezealign.training.batches.order import Draw, Order

WINDOW_BYTES = 256 * 2**20
"""Stored features that are held in memory at once."""


class CachedBatches:
    """Batches of feature stores.

    Args:
        stores: One store, or several that are mixed.
        batch_size: Pairs a batch, over all ranks.
        seed: Of the order.
        weights: How often a pair of each store is drawn in an epoch.
        captions: Captions of a pair that are in a batch together.
        rank: Of this process.
        ranks: Processes that share each batch.
    """

    def __init__(
        self,
        stores: Sequence[FeatureStore],
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        captions: int = 1,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.stores, self.store = list(stores), FeatureStore.join(stores)
        self.weights, self.captions, self.rank, self.ranks = weights, captions, rank, ranks
        self.sizes = [len(store) for store in stores]
        self.skipped = self.store.skipped
        self.num_pairs: int | None = len(self.store)
        window = None
        if not self.store.in_memory:
            everything = len(self.store.columns["items/ids.lengths"])  # a selection shares the columns of all
            window = max(1, WINDOW_BYTES * everything // self.store.nbytes)
            if len(self.store) <= window:
                self.store = self.store.resident()
        self.in_memory = self.store.in_memory
        if batch_size > self.num_pairs:
            batch_size = self.num_pairs - self.num_pairs % ranks
        self.order = Order(self.sizes, batch_size, seed, weights, window)
        self.batch_size: int | None = self.order.batch_size
        if self.order.batch_size % ranks:
            raise ValueError(f"a batch of {self.order.batch_size} pairs cannot be shared by {ranks} processes evenly.")

    def __len__(self) -> int:
        return len(self.order)

    def digest(self) -> str:
        """Return what tells the pairs from others."""
        return hashlib.sha256("".join(store.digest() for store in self.stores).encode()).hexdigest()

    def epoch(self, number: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Yield the batches of one epoch; the next are gathered while the model works."""
        return prefetch(self._batches(number, start))

    def _batches(self, number: int, start: int) -> Iterator[TrainingBatch]:
        place = 0
        for window in self.order.epoch(number):
            skip = min(max(start - place, 0), len(window))
            place, draws = place + skip, [self._share(draw) for draw in window[skip:]]
            store, positions = self.store, [draw.positions for draw in draws]
            if draws and not self.in_memory:
                store, positions = self._window(positions)
            for draw, index in zip(draws, positions):
                inputs, owners = store.load(index, draw.row_draws, self.captions)
                yield TrainingBatch(inputs, self._owners(owners, draw.positions), place, self.order.batch_size)
                place += 1

    def _owners(self, owners: dict[str, Tensor] | None, positions: np.ndarray) -> dict[str, Tensor] | None:
        """Name the pairs of a batch as all ranks name them, if one may be in it twice."""
        if owners is None and (self.weights is None or all(weight == 1 for weight in self.weights)):
            return None
        pairs = torch.from_numpy(positions)
        return {key: pairs if owners is None else pairs[owners[key]] for key in self.store.features}

    def _share(self, draw: Draw) -> Draw:
        """Return this rank's part of a batch."""
        size = self.order.batch_size // self.ranks
        return draw.rows(self.rank * size, (self.rank + 1) * size)

    def _window(self, batches: list[np.ndarray]) -> tuple[FeatureStore, list[np.ndarray]]:
        """Read the pairs of some batches into memory, in the order they lie on disk, and say where each is now."""
        wanted, places = np.unique(np.concatenate(batches), return_inverse=True)
        return self.store.resident(wanted), np.split(places, np.cumsum([len(index) for index in batches])[:-1])
