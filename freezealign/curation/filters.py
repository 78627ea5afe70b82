"""Filters: what decides which candidates stay, applied one after another, each counted; and those of equal pairs."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors import SafetensorError, safe_open

from freezealign.curation.pools import Pool
from freezealign.curation.top_k import NOTHING, find, rows_of
from freezealign.files import write_arrays_atomically
from freezealign.words import plain

CHUNK_ROWS = 50_000


class Filter(ABC):
    """Decides which candidates stay."""

    name: ClassVar[str]
    """What it is called in reports."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What the pool must tell of its pairs."""

    def check(self, pool: Pool) -> None:
        """Raise a ``ValueError`` if this filter cannot judge the pairs of a pool."""
        for field in self.needs:
            pool.require(field)

    def request(self) -> dict[str, Any]:
        """Return all that it depends on, as JSON: the fields of a dataclass, unless it says otherwise."""
        return asdict(self)  # type: ignore[call-overload]

    def settings(self) -> dict[str, Any]:
        """Return its name and all that it depends on."""
        return {"filter": self.name, **self.request()}

    @abstractmethod
    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return (n,) bool: which candidates stay.

        Args:
            pool: What is known of them.
            rows: (n,) the candidates that all filters before have left, ascending.
            keys: (C, K) the lists of all concepts, best first.
        """


def same_pairs(pool: Pool, other: Pool) -> None:
    """Raise a ``ValueError`` unless two pools have equally many pairs."""
    if len(pool) != len(other):
        raise ValueError(f"{other.name} has {len(other):,} pairs, not the {len(pool):,} of {pool.name}.")


def apply_filters(
    filters: Sequence[Filter], pool: Pool, rows: np.ndarray, keys: np.ndarray, folder: Path
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the candidates that all filters leave, ascending, and for each filter what it removed.

    What a filter has left is kept in ``folder``, which is of these filters and this pool alone: run again after a kill,
    those that were done are not done again.

    Args:
        filters: In the order in which they are applied.
        pool: What is known of the candidates.
        rows: (n,) the candidates, ascending.
        keys: (C, K) the lists of all concepts, best first.
        folder: For what each filter left.
    """
    report, lists = [], hashlib.sha256(keys.tobytes())
    for number, one in enumerate(filters):
        path, candidates = folder / f"{number}.safetensors", lists.copy()
        candidates.update(rows.tobytes())
        left = _left(path, candidates.hexdigest())
        if left is None:
            left = rows[one.keep(pool, rows, keys)]
            write_arrays_atomically(path, {"rows": left}, {"candidates": candidates.hexdigest()})
        report.append({**one.settings(), "candidates": len(rows), "removed": len(rows) - len(left)})
        rows = left
    return rows, report


def _left(path: Path, candidates: str) -> np.ndarray | None:
    """Return what a filter left of the same candidates, if that was kept and can be read."""
    try:
        with safe_open(str(path), "np") as file:
            rows: np.ndarray | None = file.get_tensor("rows") if file.metadata()["candidates"] == candidates else None
    except (OSError, SafetensorError, KeyError):
        return None
    return rows


def chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows in chunks of which vectors and captions fit into memory."""
    for start in range(0, len(rows), CHUNK_ROWS):
        yield rows[start : start + CHUNK_ROWS]


def each(pool: Pool, rows: np.ndarray, field: str) -> Iterator[Any]:
    """Yield one field of some pairs, read in chunks."""
    for some in chunks(rows):
        yield from pool.take(some, field)


@dataclass(frozen=True)
class EqualCaptions(Filter):
    """One pair of each caption, the best scored; case, width of letters, punctuation and spaces make no difference.

    Pairs without a caption stay.
    """

    name = "equal captions"
    needs = ("caption",)

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are the best scored of their caption."""
        captions = [plain(caption or "") for caption in each(pool, rows, "caption")]
        return _first_of_each(captions, best_keys(rows, keys))


@dataclass(frozen=True)
class EqualIds(Filter):
    """One pair of each id, the best scored."""

    name = "equal ids"

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are the best scored of their id.

        Raises:
            ValueError: If a pair has none.
        """
        ids = list(each(pool, rows, "id"))
        if missing := [row for row, name in zip(rows.tolist(), ids) if name in (None, "")]:
            raise ValueError(f"{len(missing):,} pairs of {pool.name} have no id, the first is row {missing[0]}.")
        return _first_of_each(ids, best_keys(rows, keys))


def best_keys(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return for each candidate (n,), ascending, the largest key it has in any list: its best score."""
    flat = keys[keys != NOTHING]
    places, found = find(rows, rows_of(flat))
    best = np.full(len(rows), NOTHING)
    np.maximum.at(best, places[found], flat[found])
    return best


def _first_of_each(names: Sequence[Any], best: np.ndarray) -> np.ndarray:
    """Return which of several with one name has the largest key; those without a name all stay."""
    keep, seen = np.zeros(len(names), bool), set()
    for index in np.argsort(best)[::-1].tolist():
        if not names[index] or names[index] not in seen:
            keep[index] = True
            seen.add(names[index])
    return keep
