"""The K best rows of a pool for every concept, kept while the pool goes by.

A score and its row are one 64-bit key: above the score, in an order of bits that is the order of numbers, below the
row, counted backwards. The largest keys are then the best scores, equal ones by the lower row, so that what is kept
depends neither on the order in which rows arrive nor on how they are divided among machines.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MOST_ROWS = 2**32 - 1
SLACK = 2
"""Keys kept for a concept before they are cut down to K, in units of K."""
CUT_AT_ONCE = 64
"""Concepts whose lists are cut together: what is copied for it stays small."""
_ROW = np.uint64(0xFFFFFFFF)
_SIGN = np.uint32(0x80000000)
_SHIFT = np.uint64(32)
NOTHING = np.uint64(0)
"""A key below that of every score; there is no score whose bits are a NaN's."""


def as_keys(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return uint64 keys of float32 scores, none of them NaN, and of rows below ``MOST_ROWS``."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0 + 0 is 0: both zeros are one score
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return (ordered.astype(np.uint64) << _SHIFT) | (_ROW - rows.astype(np.uint64))


def scores_of(keys: np.ndarray) -> np.ndarray:
    """Return the float32 scores of keys."""
    ordered = (keys >> _SHIFT).astype(np.uint32)
    return np.where(ordered & _SIGN, ordered & ~_SIGN, ~ordered).view(np.float32)


def rows_of(keys: np.ndarray) -> np.ndarray:
    """Return the int64 rows of keys."""
    return (_ROW - (keys & _ROW)).astype(np.int64)


class TopK:
    """The K best rows of each of C concepts among all rows seen so far, exactly; memory is O(C·K).

    Args:
        concepts: C.
        k: Rows to keep for each.
    """

    def __init__(self, concepts: int, k: int) -> None:
        if k < 1 or concepts < 1:
            raise ValueError(f"top-K needs at least one concept and K of at least 1, got {concepts} and {k}.")
        self.k = k
        self.keys = np.full((concepts, SLACK * k), NOTHING)
        self.counts = np.zeros(concepts, np.int64)
        self.floor = torch.full((concepts, 1), -torch.inf)

    def update(self, scores: Tensor, first: int) -> None:
        """Look at scores (C, B) float32 of rows ``first`` … ``first + B - 1``; those that are NaN are no candidates.

        Raises:
            ValueError: If a row is beyond what a key can hold.
        """
        if first + scores.shape[1] > MOST_ROWS:
            raise ValueError(f"a pool has at most {MOST_ROWS:,} rows, and this is row {first + scores.shape[1]:,}.")
        for start in range(0, scores.shape[1], self.k):  # at most K new keys a concept, which fit behind K old ones
            concepts, columns, values = _at_least(scores[:, start : start + self.k], self.floor)
            self._append(concepts, as_keys(values, columns + (first + start)))

    def merge(self, keys: np.ndarray) -> None:
        """Take in the keys (C, K) of another part of the pool, as :meth:`sorted` gives them."""
        concepts, columns = np.nonzero(keys)
        self._append(concepts, keys[concepts, columns])

    def sorted(self) -> np.ndarray:
        """Return the keys (C, K), best first; where there are fewer than K, the rest is ``NOTHING``."""
        self._cut(np.flatnonzero(self.counts > self.k))
        return np.sort(self.keys[:, : self.k], axis=1)[:, ::-1].copy()

    def _append(self, concepts: np.ndarray, keys: np.ndarray) -> None:
        """Add keys (n,) to the lists of ``concepts`` (n,), ascending, at most K of each."""
        new = np.bincount(concepts, minlength=len(self.keys))
        self._cut(np.flatnonzero(self.counts + new > self.keys.shape[1]))
        starts = np.cumsum(new) - new
        self.keys[concepts, (self.counts - starts)[concepts] + np.arange(len(keys))] = keys
        self.counts += new

    def _cut(self, concepts: np.ndarray) -> None:
        """Keep the K best of concepts that have more, and raise the score that is worth a look."""
        for some in np.array_split(concepts, -(-len(concepts) // CUT_AT_ONCE) or 1):
            best = np.partition(self.keys[some], -self.k, axis=1)[:, -self.k :]
            self.keys[some, : self.k], self.keys[some, self.k :] = best, NOTHING
            self.counts[some] = self.k
            self.floor[some] = torch.from_numpy(scores_of(best.min(1, keepdims=True)))


def _at_least(scores: Tensor, floor: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return concept, column and value of the scores (C, B) that reach the concept's floor (C, 1), in that order."""
    if scores.is_cpu:  # NumPy finds few among many several times faster than torch
        concepts, columns = np.divmod(np.flatnonzero((scores >= floor).numpy()), scores.shape[1])
        return concepts, columns, scores.numpy()[concepts, columns]
    found = torch.nonzero(scores >= floor.to(scores.device))
    values = scores[found[:, 0], found[:, 1]]
    return found[:, 0].cpu().numpy(), found[:, 1].cpu().numpy(), values.cpu().numpy()


def find(rows: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each of ``wanted`` stands among ``rows``, ascending, or 0, and whether it does."""
    places = np.searchsorted(rows, wanted)
    found = places < len(rows)
    found[found] = rows[places[found]] == wanted[found]
    return np.where(found, places, 0), found
