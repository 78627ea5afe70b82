"""Equal pairs: of several with one caption or one id, the best scored stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from freezealign.curation.filters import Filter, each
from freezealign.curation.pools import Pool
from freezealign.curation.top_k import NOTHING, find, rows_of
from freezealign.words import plain


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
        return _first_ofeach(captions, best_keys(rows, keys))


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
        return _first_ofeach(ids, best_keys(rows, keys))


def best_keys(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return for each candidate (n,), ascending, the largest key it has in any list: its best score."""
    flat = keys[keys != NOTHING]
    places, found = find(rows, rows_of(flat))
    best = np.full(len(rows), NOTHING)
    np.maximum.at(best, places[found], flat[found])
    return best


def _first_ofeach(names: Sequence[Any], best: np.ndarray) -> np.ndarray:
    """Return which of several with one name has the largest key; those without a name all stay."""
    keep, seen = np.zeros(len(names), bool), set()
    for index in np.argsort(best)[::-1].tolist():
        if not names[index] or names[index] not in seen:
            keep[index] = True
            seen.add(names[index])
    return keep
