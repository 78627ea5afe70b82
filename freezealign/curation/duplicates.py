"""Filters by vectors: near-duplicates, what a model will be tested on, pictures and captions that go together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezealign.curation.filters import CHUNK_ROWS, Filter
from freezealign.curation.pools import Pool
from freezealign.curation.top_k import NOTHING, find, rows_of
from freezealign.vectors import unit

TILE = 2048
THRESHOLD = 0.95
NEARLY = 1e-3


@dataclass(frozen=True)
class NearDuplicates(Filter):
    """Of candidates nearly alike, the one that suits the concept best; concepts are looked at one after another.

    Candidates are compared that share a concept, as what is nearly alike has nearly the same scores: the work is
    concepts × K², not candidates², and memory that of one concept's vectors.

    Args:
        pool: Whose vectors to compare: those of the images, or with a pool of ``text`` those of the captions.
        threshold: Cosine from which on two are taken for one; what it should be depends on the encoder.

    Raises:
        ValueError: If the threshold is no cosine.
    """

    pool: Pool
    threshold: float = THRESHOLD
    name = "near-duplicates"

    def __post_init__(self) -> None:
        _check_cosine(self.threshold)

    def request(self) -> dict[str, Any]:
        """Return the threshold, and which features it applies to."""
        return {"threshold": self.threshold, "features": self.pool.fingerprint}

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which candidates are not nearly like one that is kept."""
        keep = np.ones(len(rows), bool)
        for own in keys:
            places, found = find(rows, rows_of(own[own != NOTHING]))
            places = places[found]
            places = places[keep[places]]
            if len(places):
                keep[places] = first_of_kind(_unit_rows(self.pool, rows[places]), self.threshold)
        return keep


@dataclass(frozen=True)
class Leaks(Filter):
    """Candidates that are not nearly alike to anything a model will be tested on.

    Args:
        tests: The test sets by name, with vectors that were made as the pool's were.
        pool: Whose vectors to compare.
        threshold: Cosine from which on a candidate is taken for the test item.

    Raises:
        ValueError: If there is no test set, its vectors are zero, not finite or of another width, both encoders are
            known and are not the same, or the threshold is no cosine.
    """

    tests: Mapping[str, Pool]
    pool: Pool
    threshold: float = THRESHOLD
    name = "near-duplicates of test items"

    def __post_init__(self) -> None:
        _check_cosine(self.threshold)
        if not self.tests:
            raise ValueError("there are no test sets to keep out of the selection.")
        for name, test in self.tests.items():
            self.pool.compare(f"the vectors of the test set {name}", test.width, test.origin)

    @cached_property
    def _units(self) -> Tensor:
        parts = []
        for name, test in self.tests.items():
            parts.append(unit(test.all_vectors()))
            bad = torch.nonzero(~((parts[-1].norm(dim=1) - 1).abs() <= NEARLY)).flatten()
            if len(bad):
                raise ValueError(
                    f"{len(bad)} vectors of the test sets are zero or not finite, in {name} that of row {int(bad[0])} "
                    "first; nothing can be kept away from them. Extract them again, or leave them out of the test set."
                )
        return torch.cat(parts)

    def request(self) -> dict[str, Any]:
        """Return the threshold, the test sets' sizes and digest, and which features they are compared with.

        Raises:
            ValueError: If a vector of a test set is zero or not finite.
        """
        digest = hashlib.sha256(self._units.numpy().tobytes()).hexdigest()
        sizes = {name: len(test) for name, test in self.tests.items()}
        return {"threshold": self.threshold, "tests": sizes, "digest": digest, "features": self.pool.fingerprint}

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which candidates are not nearly like a test item."""
        keep = np.zeros(len(rows), bool)
        for start in range(0, len(rows), TILE):
            vectors = _unit_rows(self.pool, rows[start : start + TILE])
            near = [(vectors @ tests.T).amax(1) for tests in self._units.split(TILE)]
            keep[start : start + TILE] = (torch.stack(near).amax(0) < self.threshold).numpy()
        return keep


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

    def request(self) -> dict[str, Any]:
        """Return the settings, and which vectors they apply to."""
        return {"lowest": self.lowest, "pools": [self.image.fingerprint, self.text.fingerprint]}

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are alike enough."""
        keep = np.zeros(len(rows), bool)
        for start in range(0, len(rows), CHUNK_ROWS):
            some = slice(start, start + CHUNK_ROWS)
            images, texts = (unit(one.vectors.take(rows[some])) for one in (self.image, self.text))
            keep[some] = ((images * texts).sum(1) >= self.lowest).numpy()
        return keep


def _check_cosine(threshold: float) -> None:
    if not -1 < threshold <= 1:
        raise ValueError(f"a threshold is a cosine, above -1 and at most 1, got {threshold}.")


def first_of_kind(vectors: Tensor, threshold: float, size: int = TILE) -> np.ndarray:
    """Return (n,) bool: which unit vectors (n, d) have a cosine below ``threshold`` with all kept ones before them."""
    keep = torch.ones(len(vectors), dtype=torch.bool)
    for start in range(0, len(vectors), size):
        tile, mine = vectors[start : start + size], keep[start : start + size]
        for begin in range(0, start, size):
            before = vectors[begin : begin + size][keep[begin : begin + size]]
            mine &= ~((tile @ before.T) >= threshold).any(1)
        alike = torch.tril(tile @ tile.T >= threshold, diagonal=-1)
        for row in torch.nonzero(alike.any(1)).flatten().tolist():  # in order: only kept ones count
            mine[row] &= not bool((alike[row] & mine).any())
    return keep.numpy()


def _unit_rows(pool: Pool, rows: np.ndarray) -> Tensor:
    """Return unit vectors of some rows, which are read in ascending order."""
    order = np.argsort(rows)
    vectors = unit(pool.vectors.take(rows[order]))
    return vectors[torch.from_numpy(np.argsort(order))]
