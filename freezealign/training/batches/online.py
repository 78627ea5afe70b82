"""Training batches of inputs that are read anew in every epoch; the model encodes them as it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from freezealign.data.pairs import Pair
from freezealign.data.reader import PairReader
from freezealign.encoders import FrozenEncoder
from freezealign.features.read import read_batch
from freezealign.inputs import Skipped
from freezealign.prefetch import prefetch
from freezealign.training.batches.base import TrainingBatch
from freezealign.training.batches.order import Order


class OnlineBatches:
    """Batches read and preprocessed anew in every epoch; the model encodes them as it trains.

    Data with positions is shuffled here, exactly as a cached store of it would be. A ``DataLoader`` keeps its own
    batches and order.
    """

    def __init__(
        self, reader: PairReader, encoders: Mapping[str, FrozenEncoder], batch_size: int, seed: int, strict: bool
    ) -> None:
        if reader.loader is not None:
            _check_loader(reader.loader)
        elif not reader.has_positions:
            raise ValueError(
                f"cache_features=False needs data that can be read again in every epoch: a list, a datasets.Dataset "
                f"or a DataLoader, not {type(reader.data).__name__}."
            )
        self.reader, self.encoders, self.seed, self.strict = reader, encoders, seed, strict
        self.skipped: list[Skipped] = []
        self.num_pairs = reader.count
        self.order = Order([reader.count or 0], batch_size, seed) if reader.loader is None else None
        self.batch_size: int | None = self.order.batch_size if self.order else batch_size

    def __len__(self) -> int:
        return len(self.order or self.reader.data)

    def digest(self) -> str | None:
        """Return what tells the pairs from others, of a ``DataLoader`` what its data set knows of itself."""
        return self.reader.digest()

    def epoch(self, number: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Yield the batches of one epoch; the next is read while the model works."""
        self.skipped = []
        return prefetch(self._shuffled(number, start) if self.order else self._loaded(number, start))

    def _shuffled(self, number: int, start: int) -> Iterator[TrainingBatch]:
        assert self.order is not None
        draws = (draw for window in self.order.epoch(number) for draw in window)
        for place, draw in islice(enumerate(draws), start, None):
            pairs = [self.reader.at(int(position)) for position in draw.positions]
            yield from self._batch(place, draw.positions, pairs, draw.row_draws)

    def _loaded(self, number: int, start: int) -> Iterator[TrainingBatch]:
        rng, seen = np.random.default_rng([self.seed, number]), 0
        for place, pairs in enumerate(self.reader.batches()):
            draws = rng.random(len(pairs))
            if place >= start:
                yield from self._batch(place, np.arange(seen, seen + len(pairs)), pairs, draws)
            seen += len(pairs)

    def _batch(
        self, place: int, index: np.ndarray, pairs: Sequence[Pair], row_draws: np.ndarray
    ) -> Iterator[TrainingBatch]:
        drawn = dict(zip(index.tolist(), row_draws))
        batch = read_batch(
            zip(index.tolist(), pairs),
            self.encoders,
            self.strict,
            lambda pair, position: _one_row(pair, drawn[position]),
        )
        self.skipped += batch.skipped
        if len(batch.pairs) >= 2:
            yield TrainingBatch(batch.inputs, None, place, len(batch.pairs))


def _one_row(pair: Pair, draw: float) -> Pair:
    """Return the pair with one item a modality, drawn by a number in [0, 1) as a store draws it."""
    items = {}
    for key, rows in pair.items.items():
        place, draw = divmod(draw * len(rows), 1)  # the rest draws in the next modality
        items[key] = [rows[int(place)]]
    return Pair(items, pair.id)


def _check_loader(loader: DataLoader[Any]) -> None:
    """Raise a ``ValueError`` if a loader cannot be trained from without a cache."""
    if loader.batch_size == 1:
        raise ValueError("the DataLoader has batch_size=1: a pair alone has no negatives.")
    try:
        len(loader)
    except TypeError:
        raise ValueError(
            "a DataLoader of a stream cannot tell the length of an epoch, which the learning rate follows; "
            "leave cache_features=True."
        ) from None
