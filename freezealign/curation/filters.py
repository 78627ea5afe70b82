"""Quality filters: what a candidate must be to be selected. Each says how many it removed."""

from __future__ import annotations

import hashlib
import json
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
from freezealign.vectors import unit
from freezealign.words import count_words, plain

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

    @abstractmethod
    def request(self) -> dict[str, Any]:
        """Return its settings, as JSON."""

    @abstractmethod
    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return (n,) bool: which candidates stay.

        Args:
            pool: What is known of them.
            rows: (n,) the candidates that all filters before have left, ascending.
            keys: (C, K) the lists of all concepts, best first.
        """


@dataclass(frozen=True)
class CaptionLength(Filter):
    """Captions of so many words; those of scripts without spaces count by the character.

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

    def request(self) -> dict[str, Any]:
        """Return the settings."""
        return asdict(self)

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which captions are long and short enough; where there is none, it has no word."""
        counts = np.array([count_words(caption or "") for caption in _each(pool, rows, "caption")], np.int64)
        return (counts >= self.fewest) & (counts <= (np.inf if self.most is None else self.most))


@dataclass(frozen=True)
class Language(Filter):
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
        known = self._identifier().labels
        if unknown := sorted(set(self.languages) - set(known)):
            raise ValueError(f"no language {unknown} is known to py3langid; it knows {sorted(known)}.")

    def request(self) -> dict[str, Any]:
        """Return the settings."""
        return asdict(self)

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which captions are in a wanted language, or not clearly in another."""
        identifier = self._identifier()
        found = (identifier.classify(caption or "") for caption in _each(pool, rows, "caption"))
        return np.array([code in self.languages or p < self.certainty for code, p in found], bool)

    @staticmethod
    def _identifier() -> Any:
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ModuleNotFoundError:
            raise ModuleNotFoundError("the language filter needs: pip install 'freezealign[web]'") from None
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@dataclass(frozen=True)
class StatedSimilarity(Filter):
    """Pairs whose image and caption are alike, by the ``similarity`` that the pool states; unknown is too little."""

    lowest: float
    name = "stated image–text similarity"
    needs = ("similarity",)

    def request(self) -> dict[str, Any]:
        """Return the settings."""
        return asdict(self)

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are alike enough."""
        stated = (np.nan if value is None else float(value) for value in _each(pool, rows, "similarity"))
        return np.fromiter(stated, np.float64, len(rows)) >= self.lowest


@dataclass(frozen=True)
class Similarity(Filter):
    """Pairs whose image and caption are alike, by the cosine of their vectors.

    Args:
        lowest: The least cosine.
        image: The pool's images in one space with ``text``, as CLIP gives them.
        text: The pool's captions.

    Raises:
        ValueError: If the two are not of the same pairs, or of unequal width.
    """

    lowest: float
    image: Pool
    text: Pool
    name = "image–text similarity"

    def __post_init__(self) -> None:
        shapes = [(len(pool), pool.width) for pool in (self.image, self.text)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"images and captions need vectors of the same pairs in one space, got {shapes}.")

    def check(self, pool: Pool) -> None:
        """Raise a ``ValueError`` if the vectors are not of this pool's pairs."""
        same_pairs(pool, self.image)

    def request(self) -> dict[str, Any]:
        """Return the settings, and which vectors they apply to."""
        return {"lowest": self.lowest, "pools": [self.image.fingerprint(), self.text.fingerprint()]}

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are alike enough."""
        parts = [np.zeros(0)]
        for some in _chunks(rows):
            images, texts = (unit(one.vectors.take(some)) for one in (self.image, self.text))
            parts.append((images * texts).sum(1).numpy())
        return np.concatenate(parts) >= self.lowest


@dataclass(frozen=True)
class EqualCaptions(Filter):
    """One pair of each caption, the best scored; case, width of letters, punctuation and spaces make no difference.

    Pairs without a caption stay.
    """

    name = "equal captions"
    needs = ("caption",)

    def request(self) -> dict[str, Any]:
        """Return that there is nothing to set."""
        return {}

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are the best scored of their caption."""
        captions = [plain(caption or "") for caption in _each(pool, rows, "caption")]
        return _first_of_each(captions, best_keys(rows, keys))


@dataclass(frozen=True)
class EqualIds(Filter):
    """One pair of each id, the best scored."""

    name = "equal ids"

    def request(self) -> dict[str, Any]:
        """Return that there is nothing to set."""
        return {}

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are the best scored of their id.

        Raises:
            ValueError: If a pair has none.
        """
        ids = list(_each(pool, rows, "id"))
        if missing := [row for row, name in zip(rows.tolist(), ids) if name in (None, "")]:
            raise ValueError(f"{len(missing):,} pairs of {pool.name} have no id, the first is row {missing[0]}.")
        return _first_of_each(ids, best_keys(rows, keys))


def same_pairs(pool: Pool, other: Pool) -> None:
    """Raise a ``ValueError`` unless two pools have equally many pairs."""
    if len(pool) != len(other):
        raise ValueError(f"{other.name} has {len(other):,} pairs, not the {len(pool):,} of {pool.name}.")


def apply_filters(
    filters: Sequence[Filter], pool: Pool, rows: np.ndarray, keys: np.ndarray, folder: Path
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the candidates that all filters leave, ascending, and for each filter what it removed.

    What a filter has left is kept in ``folder``: run again after a kill, those that were done are not done again.
    """
    report = []
    lists = hashlib.sha256(keys.tobytes() + json.dumps(pool.fingerprint()).encode()).hexdigest()
    for number, one in enumerate(filters):
        path, settings = folder / f"{number}.safetensors", {"filter": one.name, **one.request()}
        request = json.dumps({**settings, "lists": lists, "rows": hashlib.sha256(rows.tobytes()).hexdigest()})
        left = _done(path, request)
        if left is None:
            left = rows[one.keep(pool, rows, keys)]
            write_arrays_atomically(path, {"rows": left}, {"request": request})
        report.append({**settings, "candidates": len(rows), "removed": len(rows) - len(left)})
        rows = left
    return rows, report


def _done(path: Path, request: str) -> np.ndarray | None:
    """Return what a filter of the same settings left of the same candidates, if that was kept."""
    try:
        with safe_open(str(path), "np") as file:
            rows: np.ndarray | None = file.get_tensor("rows") if file.metadata()["request"] == request else None
    except (OSError, SafetensorError):
        return None
    return rows


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


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), CHUNK_ROWS):
        yield rows[start : start + CHUNK_ROWS]


def _each(pool: Pool, rows: np.ndarray, field: str) -> Iterator[Any]:
    for some in _chunks(rows):
        yield from pool.take(some, field)
