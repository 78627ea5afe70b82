"""Filters: what decides which candidates stay, one after another, each counted; those by what is known of a pair."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from freezealign.curation.pools import Pool
from freezealign.curation.top_k import NOTHING, find, rows_of
from freezealign.files import read_arrays, write_arrays_atomically
from freezealign.inputs import Skipped, Unreadable
from freezealign.words import count_words, plain

CHUNK_ROWS = 50_000


class Filter(ABC):
    """Decides which candidates stay. A dataclass as a rule."""

    name: ClassVar[str]
    """What it is called in reports."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What the pool must tell of its pairs."""

    def check(self, pool: Pool) -> None:
        """Raise a ``ValueError`` if this filter cannot judge the pairs of a pool, or holds vectors of other pairs."""
        for field in self.needs:
            pool.require(field)
        for own in vars(self).values():
            if isinstance(own, Pool) and len(own) != len(pool):
                raise ValueError(f"{own.name} has {len(own):,} pairs, not the {len(pool):,} of {pool.name}.")

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


def apply_filters(
    filters: Sequence[Filter], pool: Pool, rows: np.ndarray, keys: np.ndarray, folder: Path
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return which of the candidates ``rows`` (n,), ascending, the filters leave in turn, and what each removed.

    What a filter has left is kept in ``folder``, which is of these filters and this pool alone: run again after a kill,
    those that were done are not done again.
    """
    report, lists = [], hashlib.sha256(keys.tobytes())
    for number, one in enumerate(filters):
        path, candidates = folder / f"{number}.safetensors", lists.copy()
        candidates.update(rows.tobytes())
        left = _left(path, candidates.hexdigest(), rows)
        if left is None:
            left = rows[one.keep(pool, rows, keys)]
            write_arrays_atomically(path, {"rows": left}, {"candidates": candidates.hexdigest()})
        report.append({**one.settings(), "candidates": len(rows), "removed": len(rows) - len(left)})
        rows = left
    return rows, report


def _left(path: Path, candidates: str, rows: np.ndarray) -> np.ndarray | None:
    """Return what a filter left of the same candidates, if that was kept and can be read."""
    try:
        arrays, metadata = read_arrays(path)
        left = arrays["rows"]
        whole = metadata["candidates"] == candidates and left.dtype == rows.dtype
        return left if whole and np.array_equal(left, np.intersect1d(left, rows)) else None
    except (ValueError, KeyError):
        return None


def each(pool: Pool, rows: np.ndarray, field: str) -> Iterator[Any]:
    """Yield one field of some pairs, of as many at a time as fit into memory."""
    for start in range(0, len(rows), CHUNK_ROWS):
        yield from pool.take(rows[start : start + CHUNK_ROWS], field)


def find_unreadable(pool: Pool, rows: np.ndarray) -> list[Skipped]:
    """Return which of some pairs, ascending, have no id, or something else that cannot be read, and why."""
    found: dict[int, str] = {}
    for field in dict.fromkeys(("id", *pool.known)):
        for row, value in zip(rows.tolist(), each(pool, rows, field)):
            if isinstance(value, Unreadable):
                found.setdefault(row, value.reason)
            elif field == "id" and (value is None or value == "" or value != value):  # noqa: PLR0124 - NaN
                found.setdefault(row, "it has no id")
    return [Skipped(row, reason) for row, reason in sorted(found.items())]


class _ByValue(Filter):
    """Judges each pair by the one field that it needs."""

    @abstractmethod
    def _accepts(self, value: Any) -> bool:
        """Whether a pair stays; ``None`` where the pool does not tell."""

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are accepted."""
        return np.fromiter(map(self._accepts, each(pool, rows, self.needs[0])), bool, len(rows))


@dataclass(frozen=True)
class CaptionLength(_ByValue):
    """Captions of so many words; those of scripts without spaces count by the character, no caption has none.

    Raises:
        ValueError: If no caption can be so long.
    """

    fewest: int = 1
    most: int | None = None
    name = "caption length"
    needs = ("caption",)

    def __post_init__(self) -> None:
        if self.fewest < 0 or (self.most is not None and self.most < max(1, self.fewest)):
            raise ValueError(f"no caption has at least {self.fewest} and at most {self.most} words.")

    def _accepts(self, value: str | None) -> bool:
        return self.fewest <= count_words(value or "") <= (float("inf") if self.most is None else self.most)


@dataclass(frozen=True)
class Language(_ByValue):
    """Captions that are not clearly in another language; short ones rarely are clearly in any.

    Args:
        languages: ISO 639-1 codes of those wanted.
        certainty: Probability from which on py3langid's guess counts.

    Raises:
        ModuleNotFoundError: If py3langid is not installed.
        ValueError: If it does not know a language.
    """

    languages: tuple[str, ...]
    certainty: float = 0.8
    name = "language"
    needs = ("caption",)

    def __post_init__(self) -> None:
        known = self._identifier.labels
        if unknown := sorted(set(self.languages) - set(known)):
            raise ValueError(f"no language {unknown} is known to py3langid; it knows {sorted(known)}.")

    def _accepts(self, value: str | None) -> bool:
        code, probability = self._identifier.classify(value or "")
        return code in self.languages or probability < self.certainty

    @cached_property
    def _identifier(self) -> Any:
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ModuleNotFoundError:
            raise ModuleNotFoundError("the language filter needs: pip install 'freezealign[web]'") from None
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@dataclass(frozen=True)
class StatedSimilarity(_ByValue):
    """Pairs whose image and caption are alike, by the ``similarity`` that the pool states; unknown is too little."""

    lowest: float
    name = "stated image–text similarity"
    needs = ("similarity",)

    def _accepts(self, value: float | None) -> bool:
        return value is not None and value >= self.lowest


class _OneOfEqual(Filter):
    """Of pairs that are the same by the one field that it needs, the best scored."""

    def _same(self, value: Any) -> Hashable:
        """Return what equal values have in common; pairs for which that is empty all stay."""
        return value

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are the best scored of their kind."""
        kinds, best = [self._same(value) for value in each(pool, rows, self.needs[0])], best_keys(rows, keys)
        keep, seen = np.zeros(len(kinds), bool), set()
        for index in np.argsort(best)[::-1].tolist():
            if not kinds[index] or kinds[index] not in seen:
                keep[index] = True
                seen.add(kinds[index])
        return keep


@dataclass(frozen=True)
class EqualCaptions(_OneOfEqual):
    """One pair of each caption, the best scored; case, width of letters, punctuation and spaces make no difference.

    Pairs without a caption stay.
    """

    name = "equal captions"
    needs = ("caption",)

    def _same(self, value: str | None) -> str:
        return plain(value or "")


@dataclass(frozen=True)
class EqualIds(_OneOfEqual):
    """One pair of each id, the best scored."""

    name = "equal ids"
    needs = ("id",)


def best_keys(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return for each candidate (n,), ascending, the largest key it has in any list: its best score."""
    flat = keys[keys != NOTHING]
    places, found = find(rows, rows_of(flat))
    best = np.full(len(rows), NOTHING)
    np.maximum.at(best, places[found], flat[found])
    return best
