"""Where training batches come from: cached features, or inputs read and encoded on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader

from freezealign.data.pairs import Pair, as_pair, count_pairs, is_map_style, iterate_pairs, undecoded
from freezealign.features import FeatureStore, Skipped
from freezealign.features.extract import read_pair
from freezealign.inputs import InputError
from freezealign.modules import Features, FrozenEncoder
from freezealign.prefetch import prefetch

DEFAULT_BATCH_SIZE = 512


class Batches(Protocol):
    """What the trainer draws from."""

    skipped: list[Skipped]
    num_pairs: int | None

    def __len__(self) -> int:
        """Return the steps of an epoch."""

    def epoch(self, number: int) -> Iterator[dict[str, Features]]:
        """Yield the batches of one epoch on the CPU, one row a modality for each pair."""


class ShuffledIndex:
    """Which pairs, and which of their captions, make each batch: a function of seed and epoch only.

    The last pairs of an order that do not fill a batch wait for the next epoch's order.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        if n < 2:
            raise ValueError(f"training needs at least 2 pairs, got {n}: a pair alone has no negatives.")
        self.n, self.batch_size, self.seed = n, min(batch_size, n), seed

    def __len__(self) -> int:
        return self.n // self.batch_size

    def epoch(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (B,) positions and, for each, a number in [0, 1) that chooses among its captions."""
        rng = np.random.default_rng([self.seed, number])
        order, choice = rng.permutation(self.n), rng.random(self.n)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            index = order[start : start + self.batch_size]
            yield index, choice[index]


class CachedBatches:
    """Batches of a feature store."""

    def __init__(self, store: FeatureStore, batch_size: int | None, seed: int) -> None:
        self.store, self.skipped = store, store.skipped
        self.num_pairs: int | None = len(store)
        self.index = ShuffledIndex(len(store), batch_size or DEFAULT_BATCH_SIZE, seed)

    def __len__(self) -> int:
        return len(self.index)

    def epoch(self, number: int) -> Iterator[dict[str, Features]]:
        """Yield the batches of one epoch; the next is gathered while the model works."""
        return prefetch(self.store.load(index, choice) for index, choice in self.index.epoch(number))


class OnlineBatches:
    """Batches read and preprocessed anew in every epoch; the model encodes them as it trains.

    Data with positions is shuffled here, exactly as a cached store of it would be. A ``DataLoader`` keeps its own
    batches and order.
    """

    def __init__(
        self, data: Any, encoders: Mapping[str, FrozenEncoder], batch_size: int | None, seed: int, strict: bool
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
        self.index = None
        if not isinstance(data, DataLoader):
            self.index = ShuffledIndex(len(data), batch_size or DEFAULT_BATCH_SIZE, seed)

    def __len__(self) -> int:
        return len(self.data) if self.index is None else len(self.index)

    def epoch(self, number: int) -> Iterator[dict[str, Features]]:
        """Yield the batches of one epoch; the next is read while the model works."""
        self.skipped = []
        return prefetch(self._shuffled(number) if self.index else self._loaded(number))

    def _shuffled(self, number: int) -> Iterator[dict[str, Features]]:
        assert self.index is not None
        for index, choice in self.index.epoch(number):
            yield from self._batch(index, [as_pair(self.data[int(i)], list(self.encoders)) for i in index], choice)

    def _loaded(self, number: int) -> Iterator[dict[str, Features]]:
        rng, seen = np.random.default_rng([self.seed, number]), 0
        for batch in self.data:
            pairs = list(iterate_pairs([batch], list(self.encoders)))
            yield from self._batch(np.arange(seen, seen + len(pairs)), pairs, rng.random(len(pairs)))
            seen += len(pairs)

    def _batch(self, index: np.ndarray, pairs: Sequence[Pair], choice: np.ndarray) -> Iterator[dict[str, Features]]:
        chosen = [item for item in map(self._read, index, pairs, choice) if item is not None]
        if len(chosen) >= 2:
            yield {key: encoder.collate([item[key] for item in chosen]) for key, encoder in self.encoders.items()}

    def _read(self, index: int, pair: Pair, choice: float) -> dict[str, Any] | None:
        """Return one item a modality, or note why the pair cannot be used."""
        try:
            read = read_pair(pair, self.encoders)
        except InputError as error:
            if self.strict:
                raise InputError(f"pair {index}: {error}") from error
            self.skipped.append(Skipped(int(index), str(error)))
            return None
        return {key: items[int(choice * len(items))] for key, items in read.items()}


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
