"""Where training batches come from: cached features, or inputs read and encoded on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from freezealign.batch import Features
from freezealign.data.pairs import Pair, as_pair, count_pairs, is_map_style, iterate_pairs, undecoded
from freezealign.encoders import FrozenEncoder
from freezealign.features import FeatureStore
from freezealign.features.extract import read_pair
from freezealign.inputs import InputError, Skipped
from freezealign.prefetch import prefetch
from freezealign.training.order import Draw, Order

WINDOW_BYTES = 256 * 2**20
"""Stored features that are held in memory at once."""


class Batch(NamedTuple):
    """What a training step gets.

    Args:
        inputs: For each modality what its tower takes, on the CPU.
        owners: For each modality (rows,) which pair of the data each row belongs to; ``None`` where no pair has more
            than one row in a modality.
        number: Its place in the epoch, from 0.
        size: Pairs in it.
    """

    inputs: dict[str, Features]
    owners: dict[str, Tensor] | None
    number: int
    size: int

    def pinned(self) -> Batch:
        """Return it in pinned memory, from where an accelerator copies while it computes."""
        inputs = {
            key: {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in features.items()}
            for key, features in self.inputs.items()
        }
        return self._replace(inputs=inputs)


class Batches(Protocol):
    """What the trainer draws from."""

    skipped: list[Skipped]
    num_pairs: int | None
    batch_size: int | None

    def __len__(self) -> int:
        """Return the steps of an epoch."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from number ``start`` on."""


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
        self.store = FeatureStore.join(stores)
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

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch; the next are gathered while the model works."""
        return prefetch(self._batches(number, start))

    def _batches(self, number: int, start: int) -> Iterator[Batch]:
        place = 0
        for window in self.order.epoch(number):
            skip = min(max(start - place, 0), len(window))
            place, draws = place + skip, [self._share(draw) for draw in window[skip:]]
            store, positions = self.store, [draw.positions for draw in draws]
            if draws and not self.in_memory:
                store, positions = self._window(positions)
            for draw, index in zip(draws, positions):
                inputs, owners = store.load(index, draw.choice, self.captions)
                yield Batch(inputs, self._owners(owners, draw.positions), place, self.order.batch_size)
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

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch; the next is read while the model works."""
        self.skipped = []
        return prefetch(self._shuffled(number, start) if self.order else self._loaded(number, start))

    def _shuffled(self, number: int, start: int) -> Iterator[Batch]:
        assert self.order is not None
        draws = (draw for window in self.order.epoch(number) for draw in window)
        for place, draw in islice(enumerate(draws), start, None):
            pairs = [as_pair(self.data[int(i)], list(self.encoders)) for i in draw.positions]
            yield from self._batch(place, draw.positions, pairs, draw.choice)

    def _loaded(self, number: int, start: int) -> Iterator[Batch]:
        rng, seen = np.random.default_rng([self.seed, number]), 0
        for place, batch in enumerate(self.data):
            pairs = list(iterate_pairs([batch], list(self.encoders)))
            choice = rng.random(len(pairs))
            if place >= start:
                yield from self._batch(place, np.arange(seen, seen + len(pairs)), pairs, choice)
            seen += len(pairs)

    def _batch(self, place: int, index: np.ndarray, pairs: Sequence[Pair], choice: np.ndarray) -> Iterator[Batch]:
        chosen = [item for item in map(self._read, index, pairs, choice) if item is not None]
        if len(chosen) >= 2:
            inputs = {key: encoder.collate([item[key] for item in chosen]) for key, encoder in self.encoders.items()}
            yield Batch(inputs, None, place, len(chosen))

    def _read(self, index: int, pair: Pair, choice: float) -> dict[str, Any] | None:
        """Return one item a modality, or note why the pair cannot be used."""
        try:
            read = read_pair(pair, self.encoders)
        except InputError as error:
            if self.strict:
                raise InputError(f"pair {index}: {error}") from error
            self.skipped.append(Skipped(int(index), str(error)))
            return None
        chosen = {}
        for key, items in read.items.items():
            place, choice = divmod(choice * len(items), 1)  # the rest chooses in the next modality, as in a store
            chosen[key] = items[int(place)]
        return chosen


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
