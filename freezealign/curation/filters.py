"""Quality filters: what a candidate must be to be selected. Each says how many it removed."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from safetensors.numpy import load_file, save

from freezealign.curation.pools import Pool
from freezealign.curation.top_k import NOTHING, find, rows_of
from freezealign.files import write_atomically
from freezealign.words import word_ends

CHUNK_ROWS = 50_000


class Filter(Protocol):
    """Decides which candidates stay."""

    @property
    def name(self) -> str:
        """What it is called in reports."""

    def request(self) -> dict[str, Any]:
        """Return its settings, as JSON."""

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return (n,) bool: which candidates stay.

        Args:
            pool: What is known of them.
            rows: (n,) the candidates that all filters before have left, ascending.
            keys: (C, K) the lists of all concepts, best first.
        """


@dataclass(frozen=True)
class CaptionLength:
    """Captions of so many words; those of scripts without spaces count by the character."""

    fewest: int = 1
    most: int | None = None
    name: str = "caption length"

    def request(self) -> dict[str, Any]:
        """Return the settings."""
        return {"fewest": self.fewest, "most": self.most}

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which captions are long and short enough; where there is none, it has no word."""
        counts = np.array([len(word_ends(caption or "")) for caption in _each(pool, rows, "caption")], np.int64)
        return (counts >= self.fewest) & (counts <= (self.most or np.inf))


@dataclass(frozen=True)
class Language:
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
    name: str = "language"

    def __post_init__(self) -> None:
        known = self._identifier().labels
        if unknown := sorted(set(self.languages) - set(known)):
            raise ValueError(f"no language {unknown} is known to py3langid; it knows {sorted(known)}.")

    def request(self) -> dict[str, Any]:
        """Return the settings."""
        return {"languages": list(self.languages), "certainty": self.certainty}

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
class Similarity:
    """Pairs whose image and caption are alike: by the similarity the pool states, or by their cosine.

    Args:
        lowest: The least cosine.
        image: A pool of the images in one space with ``text``; by default what the pool itself states counts.
        text: A pool of the captions.

    Raises:
        ValueError: If only one of the pools is given, or they are no pair.
    """

    lowest: float
    image: Pool | None = None
    text: Pool | None = None
    name: str = "image–text similarity"

    def __post_init__(self) -> None:
        shapes = [(len(pool), pool.width) for pool in (self.image, self.text) if pool is not None]
        if len(shapes) == 1 or len(set(shapes)) > 1:
            raise ValueError(f"images and captions need features of the same pairs in one space, got {shapes}.")

    def request(self) -> dict[str, Any]:
        """Return the settings, and which features they apply to."""
        pools = [pool and pool.fingerprint() for pool in (self.image, self.text)]
        return {"lowest": self.lowest, "pools": pools}

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are alike enough; one whose similarity is unknown is not."""
        if self.image is None or self.text is None:
            stated = (np.nan if value is None else float(value) for value in _each(pool, rows, "similarity"))
            return np.fromiter(stated, np.float64, len(rows)) >= self.lowest
        parts = [_cosines(self.image, self.text, some) for some in _chunks(rows)]
        return np.concatenate([np.zeros(0), *parts]) >= self.lowest


@dataclass(frozen=True)
class EqualCaptions:
    """One pair of each caption, the best scored; case, width of letters, signs and spaces make no difference.

    Pairs without a caption stay.
    """

    name: str = "equal captions"

    def request(self) -> dict[str, Any]:
        """Return that there is nothing to set."""
        return {}

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are the best scored of their caption."""
        captions = [plain(caption or "") for caption in _each(pool, rows, "caption")]
        return _first_of_each(captions, best_keys(rows, keys))


@dataclass(frozen=True)
class EqualIds:
    """One pair of each id, the best scored."""

    name: str = "equal ids"

    def request(self) -> dict[str, Any]:
        """Return that there is nothing to set."""
        return {}

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are the best scored of their id."""
        return _first_of_each([str(name) for name in _each(pool, rows, "id")], best_keys(rows, keys))


def apply_filters(
    filters: Sequence[Filter], pool: Pool, rows: np.ndarray, keys: np.ndarray, folder: Path
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the candidates that all filters leave, ascending, and for each filter what it removed.

    What a filter has left is kept in ``folder``: run again after a kill, those that were done are not done again.
    """
    report = []
    for number, one in enumerate(filters):
        path = folder / f"{number}.safetensors"
        request = {
            "filter": one.name,
            **one.request(),
            "of": hashlib.sha256(rows.tobytes() + keys.tobytes()).hexdigest(),
        }
        left = _done(path, request)
        if left is None:
            left = rows[one.keep(pool, rows, keys)]
            content = save({"rows": left}, {"request": json.dumps(request)})
            write_atomically(path, partial(_put, content))
        report.append({"filter": one.name, **one.request(), "candidates": len(rows), "removed": len(rows) - len(left)})
        rows = left
    return rows, report


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _done(path: Path, request: dict[str, Any]) -> np.ndarray | None:
    """Return what a filter of the same settings left of the same candidates."""
    from safetensors import safe_open

    if not path.is_file():
        return None
    with safe_open(str(path), "np") as file:
        same = json.loads((file.metadata() or {}).get("request", "null")) == json.loads(json.dumps(request))
    return load_file(path)["rows"] if same else None


def best_keys(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return for each candidate (n,), ascending, the largest key it has in any list: its best score."""
    flat = keys[keys != NOTHING]
    places, found = find(rows, rows_of(flat))
    best = np.full(len(rows), NOTHING)
    np.maximum.at(best, places[found], flat[found])
    return best


def plain(caption: str) -> str:
    """Return a caption's words in lower case and plain width, one space between them."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", caption).casefold()))


def _first_of_each(names: Sequence[str], best: np.ndarray) -> np.ndarray:
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


def _cosines(first: Pool, second: Pool, rows: np.ndarray) -> np.ndarray:
    from freezealign.vectors import unit

    cosines: np.ndarray = (unit(first.vectors.take(rows)) * unit(second.vectors.take(rows))).sum(1).numpy()
    return cosines
