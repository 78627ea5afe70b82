"""PairReader: pairs out of whatever holds them, from any place on, and how many there are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from os import PathLike
from typing import Any

from torch.utils.data import DataLoader

from freezealign.data.digest import pairs_digest
from freezealign.data.pairs import (
    Malformed,
    Pair,
    as_pair,
    as_pairs,
    is_batch,
    iterate_batches,
    iterate_pairs,
    undecoded,
)
from freezealign.data.sources import open_pairs
from freezealign.inputs import Unreadable

DIGEST_PAIRS = 1000
MALFORMED = 3
"""Of the first so many pairs at least one has to be one."""


class PairReader:
    """Reads pairs.

    Args:
        data: A path that :func:`freezealign.data.sources.open_pairs` opens, or what
            :func:`freezealign.data.pairs.iterate_pairs` takes.
        modalities: Names of the towers, in the order that tuples follow.

    Attributes:
        count: How many pairs there are; ``None`` where nobody can tell.
        has_positions: Whether any pair can be read on its own.
        is_seekable: Whether reading can begin anywhere without reading what comes before.
        loader: The data itself, if it is a ``DataLoader``, which keeps its own batches and order.
    """

    def __init__(self, data: Any, modalities: Sequence[str]) -> None:
        self.modalities = list(modalities)
        self.data = open_pairs(data) if isinstance(data, (str, PathLike)) else undecoded(as_pairs(data, modalities))
        self.has_positions = _has_positions(self.data, self.modalities)
        self.is_seekable = self.has_positions or hasattr(self.data, "iter_from")
        self.loader: DataLoader[Any] | None = self.data if isinstance(self.data, DataLoader) else None
        counted = self.data if self.loader is None else self.loader.dataset
        countable = self.is_seekable or self.loader is not None
        self.count = len(counted) if countable and hasattr(counted, "__len__") else None

    def read(self, start: int = 0) -> Iterator[Pair]:
        """Yield the pairs from number ``start`` on.

        Raises:
            RuntimeError: If the data raises and cannot go on; the message names the pair at which it ended.
            ValueError: If none of the first three is a pair, so that it is not one that is wrong, or a batch is none.
        """
        if self.has_positions:
            pairs: Iterator[Pair] = map(self.at, range(start, self.count or 0))
        elif hasattr(self.data, "iter_from"):
            pairs = iterate_pairs(self.data.iter_from(start), self.modalities, start)
        elif hasattr(self.data, "skip"):
            pairs = iterate_pairs(self.data.skip(start), self.modalities, start)
        else:
            pairs = islice(iterate_pairs(self.data, self.modalities), start, None)
        first = [] if start else list(islice(pairs, MALFORMED))
        items = [next(iter(pair.items.values()), [None])[:1] for pair in first]
        reasons = [item.reason for own in items for item in own if isinstance(item, Malformed)]
        if reasons and len(reasons) == len(first):
            raise ValueError(reasons[0])
        return chain(first, pairs)

    def fingerprint(self) -> str | None:
        """Return what tells the data from other data without reading it; ``None`` where only reading can tell.

        Names, sizes and times of the files it is in, or what ``datasets`` calls its fingerprint.
        """
        if isinstance(paths := getattr(self.data, "paths", None), (list, tuple)):
            facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
            return hashlib.sha256(repr(facts).encode()).hexdigest()
        is_dataset = type(self.data).__module__.startswith("datasets.")
        return getattr(self.data, "_fingerprint", None) if is_dataset else None

    def digest(self) -> str | None:
        """Return a digest of the data by up to 1,000 pairs all over it; ``None`` of data that has no positions."""
        if found := self.fingerprint():
            return found
        if not self.has_positions or not self.count:
            return None
        places = range(0, self.count, -(-self.count // DIGEST_PAIRS))
        return hashlib.sha256(self.digests(map(self.at, places)).encode()).hexdigest()

    def digests(self, pairs: Iterable[Pair]) -> str:
        """Return the digests of some pairs; pixels count where they are in a list, which is the same each time."""
        return pairs_digest(pairs, pixels=isinstance(self.data, (list, tuple)))

    def at(self, position: int) -> Pair:
        """Return one pair of data that has positions; one that cannot be had says so when its items are read."""
        try:
            element = self.data[position]
        except Exception as error:
            reason = f"the data raised {type(error).__name__}: {error}"
            return Pair({modality: [Unreadable(reason)] for modality in self.modalities})
        return as_pair(element, self.modalities)

    def batches(self) -> Iterator[list[Pair]]:
        """Yield the pairs of each batch of a ``DataLoader``."""
        return iterate_batches(self.data, self.modalities)


def _has_positions(data: Any, modalities: Sequence[str]) -> bool:
    if isinstance(data, DataLoader) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return False
    try:
        return len(data) == 0 or not is_batch(data[0], modalities)
    except Exception:  # a pair that cannot be had
        return True
