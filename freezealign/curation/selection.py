"""Balanced selection: concepts take their best rows in turn, the rarest first, no row twice; and mixing weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from freezealign.curation.top_k import NOTHING, find, rows_of, scores_of


@dataclass(frozen=True)
class Selection:
    """n rows of a pool, concept after concept in the order in which they chose, best first in each.

    Args:
        rows: (n,) int64, each once.
        concepts: (n,) which concept each serves.
        scores: (n,) float32, its score there.
    """

    rows: np.ndarray
    concepts: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def counts(self, concepts: int) -> np.ndarray:
        """Return how many rows each of so many concepts has."""
        return np.bincount(self.concepts, minlength=concepts)


def rarest_first(keys: np.ndarray, rank: int) -> np.ndarray:
    """Return the concepts by the score of their row at ``rank``, lowest first; equal ones in their own order.

    That is the worst row, from 1 on, that a concept would take if it chose first, of its keys (C, K) before any filter;
    where lists are shorter, their last row.
    """
    found = np.count_nonzero(keys, axis=1)
    worst = keys[np.arange(len(keys)), np.clip(found, 1, min(rank, keys.shape[1])) - 1]
    return np.argsort(scores_of(worst), kind="stable")


def candidate_rows(keys: np.ndarray) -> np.ndarray:
    """Return every row that is in the list of some concept, ascending."""
    return np.unique(rows_of(keys[keys != NOTHING]))


def select_balanced(keys: np.ndarray, per_concept: int, allowed: np.ndarray | None = None) -> Selection:
    """Let each concept, the rarest first, take its best rows that no concept before it has taken.

    Args:
        keys: (C, K), best first.
        per_concept: The most rows a concept takes.
        allowed: Rows that may be taken, ascending; all by default.

    Raises:
        ValueError: If ``per_concept`` is not positive.
    """
    if per_concept < 1:
        raise ValueError(f"per_concept is at least 1, got {per_concept}.")
    free = candidate_rows(keys) if allowed is None else allowed.copy()
    chosen = []
    taken = np.zeros(len(free), bool)
    for concept in rarest_first(keys, per_concept):
        own = keys[concept][keys[concept] != NOTHING]
        places, found = find(free, rows_of(own))
        found[found] = ~taken[places[found]]
        best = np.flatnonzero(found)[:per_concept]
        taken[places[best]] = True
        chosen.append((rows_of(own[best]), np.full(len(best), concept), scores_of(own[best])))
    rows, concepts, scores = (np.concatenate(parts) for parts in zip(*chosen))
    return Selection(rows, concepts, scores)


def mixing_weights(sizes: Mapping[str, int], temperature: float = 1.0) -> dict[str, float]:
    """Return what ``fit(stores, weights=…)`` takes: how often a pair of each set is drawn in an epoch, at most once.

    A set of n pairs is drawn from in proportion to n^(1/temperature): 1 keeps the sizes, infinity draws from each set
    equally often (temperature sampling, as usual in multilingual training).

    Raises:
        ValueError: If a set is empty, or the temperature is below 1.
    """
    if not temperature >= 1 or min(sizes.values(), default=0) < 1:
        raise ValueError(f"sets hold pairs and the temperature is at least 1, got {dict(sizes)} and {temperature}.")
    smallest = min(sizes.values())
    return {name: math.pow(size / smallest, 1 / temperature - 1) for name, size in sizes.items()}
