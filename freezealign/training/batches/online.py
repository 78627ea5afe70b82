"""Training batches of inputs that are read anew in every epoch; the model encodes them as it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from freezealign.data.pairs import Pair, count_pairs, is_map_style, iterate_pairs, pair_at, undecoded
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
        self, data: Any, encoders: Mapping[str, FrozenEncoder], batch_size: int, seed: int, strict: bool
    ) -> None:
        data, modalities = undecoded(data), list(encoders)
        if isinstance(data, DataLoader):
            _check_loader(data)
        elif not is_map_style(data, modalities):
            raise ValueError(
                f"cache_features=False needs data that can be read again in every epoch: a list, a datasets.Dataset "
                f"or a DataLoader, not {type(data).__name__}."
            )
        self.data, self.encoders, self.seed, self.strict = data, encoders, seed, strict
        self.skipped: list[Skipped] = []
        self.num_pairs = count_pairs(data, modalities)
        self.order = None
        if not isinstance(data, DataLoader):
            self.order = Order([len(data)], batch_size, seed)
        self.batch_size = self.order.batch_size if self.order else data.batch_size

    def __len__(self) -> int:
        return len(self.data) if self.order is None else len(self.order)

    def epoch(self, number: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Yield the batches of one epoch; the next is read while the model works."""
        self.skipped = []
        return prefetch(self._shuffled(number, start) if self.order else self._loaded(number, start))

    def _shuffled(self, number: int, start: int) -> Iterator[TrainingBatch]:
        assert self.order is not None
        draws = (draw for window in self.order.epoch(number) for draw in window)
        for place, draw in islice(enumerate(draws), start, None):
            pairs = [pair_at(self.data, int(i), list(self.encoders)) for i in draw.positions]
            yield from self._batch(place, draw.positions, pairs, draw.row_draws)

    def _loaded(self, number: int, start: int) -> Iterator[TrainingBatch]:
        rng, seen = np.random.default_rng([self.seed, number]), 0
        for place, batch in enumerate(self.data):
            pairs = list(iterate_pairs([batch], list(self.encoders), self.data.batch_size is not None))
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
