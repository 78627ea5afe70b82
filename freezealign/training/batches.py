"""Where training batches come from: cached features, or inputs read anew and encoded on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from freezealign.batch import Features
from freezealign.data.pairs import Pair
from freezealign.data.reader import PairReader
from freezealign.encoders import FrozenEncoder
from freezealign.features import FeatureStore
from freezealign.features.read import read_batch
from freezealign.inputs import Skipped
from freezealign.prefetch import prefetch
from freezealign.training.order import Draw, Order

WINDOW_BYTES = 256 * 2**20
"""Stored features that are held in memory at once."""


class TrainingBatch(NamedTuple):
    """What a training step gets.

    Args:
        inputs: For each modality what its tower takes, on the CPU.
        owners: For each modality (rows,) which pair of the data each row belongs to; ``None`` where no pair has more
            than one row in a modality.
        number: Its place in the epoch, from 0.
        size: Pairs in it.
        pairs: Where each of this process's pairs stands in the data.
    """

    inputs: dict[str, Features]
    owners: dict[str, Tensor] | None
    number: int
    size: int
    pairs: np.ndarray

    def not_finite(self) -> str | None:
        """Return which features hold NaN or infinity, in words, if any do."""
        for modality, features in self.inputs.items():
            for values in (value for value in features.values() if isinstance(value, Tensor) and value.ndim):
                bad = ~values.isfinite().reshape(len(values), -1).all(1)
                if bad.any():
                    row = int(bad.int().argmax())
                    return f"the {modality} features of pair {self.pairs[row * len(self.pairs) // len(values)]}"
        return None


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
        self.captions, self.rank, self.ranks = captions, rank, ranks
        self.may_repeat = weights is not None and any(weight != 1 for weight in weights)
        self.skipped, self.num_pairs = self.store.skipped, len(self.store)
        window = None
        if not self.store.in_memory:
            everything = len(self.store.columns["items/ids.lengths"])  # a selection shares the columns of all
            window = max(1, WINDOW_BYTES * everything // self.store.nbytes)
            if self.num_pairs <= window:
                self.store = self.store.resident()
        self.in_memory = self.store.in_memory
        if batch_size > self.num_pairs:
            batch_size = self.num_pairs - self.num_pairs % ranks
        self.order = Order([len(store) for store in stores], batch_size, seed, weights, window)
        self.batch_size = self.order.batch_size
        if self.batch_size % ranks:
            raise ValueError(f"a batch of {self.batch_size} pairs cannot be shared by {ranks} processes evenly.")

    def __len__(self) -> int:
        """Return the steps of an epoch."""
        return len(self.order)

    def digest(self) -> str:
        """Return what tells the pairs from others."""
        return hashlib.sha256("".join(store.digest() for store in self.stores).encode()).hexdigest()

    def epoch(self, number: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Yield the batches of one epoch from number ``start`` on; the next are gathered while the model works."""
        return prefetch(self._batches(number, start))

    def _batches(self, number: int, start: int) -> Iterator[TrainingBatch]:
        place, share = 0, self.batch_size // self.ranks
        for window in self.order.epoch(number):
            skip = min(max(start - place, 0), len(window))
            draws = [draw.rows(self.rank * share, (self.rank + 1) * share) for draw in window[skip:]]
            place += skip
            store, indices = self.store, [draw.positions for draw in draws]
            if draws and not self.in_memory:  # all pairs of the window, read in the order they lie on disk
                wanted, places = np.unique(np.concatenate(indices), return_inverse=True)
                store, indices = self.store.resident(wanted), np.split(places, len(draws))
            for draw, index in zip(draws, indices):
                inputs, owners = store.load(index, draw.row_draws, self.captions)
                names = self._names(owners, draw.positions)
                yield TrainingBatch(inputs, names, place, self.batch_size, draw.positions)
                place += 1

    def _names(self, owners: dict[str, Tensor] | None, positions: np.ndarray) -> dict[str, Tensor] | None:
        """Name the pairs of a batch as all ranks name them, if one may be in it twice."""
        if owners is None and not self.may_repeat:
            return None
        pairs = torch.from_numpy(positions)
        return {key: pairs if owners is None else pairs[owners[key]] for key in self.store.features}


class OnlineBatches:
    """Batches read and preprocessed anew in every epoch; the model encodes them as it trains.

    Data with positions is shuffled here, exactly as a cached store of it would be. A ``DataLoader`` keeps its own
    batches and order.
    """

    def __init__(
        self, reader: PairReader, encoders: Mapping[str, FrozenEncoder], batch_size: int, seed: int, strict: bool
    ) -> None:
        if reader.loader is None and not reader.has_positions:
            raise ValueError(
                f"cache_features=False needs data that can be read again in every epoch: a list, a datasets.Dataset "
                f"or a DataLoader, not {type(reader.data).__name__}."
            )
        if reader.loader is not None and reader.loader.batch_size == 1:
            raise ValueError("the DataLoader has batch_size=1: a pair alone has no negatives.")
        self.reader, self.encoders, self.seed, self.strict = reader, encoders, seed, strict
        self.skipped: list[Skipped] = []
        self.num_pairs = reader.count
        self.order = Order([reader.count or 0], batch_size, seed) if reader.loader is None else None
        self.batch_size = self.order.batch_size if self.order else batch_size
        try:
            self.steps = len(self.order or reader.data)
        except TypeError:
            raise ValueError(
                "a DataLoader of a stream cannot tell the length of an epoch, which the learning rate follows; "
                "leave cache_features=True."
            ) from None

    def __len__(self) -> int:
        """Return the steps of an epoch."""
        return self.steps

    def digest(self) -> str | None:
        """Return what tells the pairs from others, of a ``DataLoader`` what its data set knows of itself."""
        return self.reader.digest()

    def epoch(self, number: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Yield the batches of one epoch from number ``start`` on; the next is read while the model works."""
        self.skipped = []
        return prefetch(self._batches(number, start))

    def _batches(self, number: int, start: int) -> Iterator[TrainingBatch]:
        for place, draw, pairs in self._drawn(number, start):
            positions = draw.positions.tolist()
            drawn = dict(zip(positions, draw.row_draws))
            read = read_batch(zip(positions, pairs), self.encoders, self.strict, partial(_one_row, drawn))
            self.skipped += read.skipped
            if len(read.pairs) >= 2:
                yield TrainingBatch(read.inputs, None, place, len(read.pairs), np.array(read.positions))

    def _drawn(self, number: int, start: int) -> Iterator[tuple[int, Draw, Sequence[Pair]]]:
        """Yield the pairs of each batch, its place in the epoch, and where they stand in the data."""
        if self.order is not None:
            draws = (draw for window in self.order.epoch(number) for draw in window)
            for place, draw in islice(enumerate(draws), start, None):
                yield place, draw, [self.reader.at(int(position)) for position in draw.positions]
            return
        rng, seen = np.random.default_rng([self.seed, number]), 0
        for place, pairs in enumerate(self.reader.batches()):
            draw = Draw(np.arange(seen, seen + len(pairs)), rng.random(len(pairs)))
            seen += len(pairs)
            if place >= start:
                yield place, draw, pairs


def _one_row(drawn: Mapping[int, float], pair: Pair, position: int) -> Pair:
    """Return the pair with one item a modality, drawn by its number in [0, 1) as a store draws it."""
    items, draw = {}, drawn[position]
    for key, rows in pair.items.items():
        place, draw = divmod(draw * len(rows), 1)  # the rest draws in the next modality
        items[key] = [rows[int(place)]]
    return Pair(items, pair.id)


Batches = CachedBatches | OnlineBatches
