"""Scoring: what a pool is compared with, how its rows are walked through, and the exact pass over them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from freezealign.batch import default_device
from freezealign.curation.pools import Pool
from freezealign.curation.prototypes import Prototypes
from freezealign.curation.top_k import NOTHING, TopK, rows_of, scores_of
from freezealign.files import read_arrays, write_arrays_atomically
from freezealign.forms import parse_object
from freezealign.prefetch import prefetch

FILE_KEY = "freezealign_scores"
SHORTEST = 1e-15


@dataclass(frozen=True)
class Scores:
    """The best rows of each concept, in a pool or a part of it.

    Args:
        keys: (C, K) uint64, best first; see :mod:`freezealign.curation.top_k`.
        rows: How many rows were looked at.
        skipped: (n,) int64, those whose vector is zero or not finite, ascending; they are never candidates.
        recall: The share of the exact result that an approximate search found; ``None`` where it is exact.
    """

    keys: np.ndarray
    rows: int
    skipped: np.ndarray
    recall: float | None = None

    @property
    def unusable(self) -> int:
        """How many rows have a vector that is zero or not finite."""
        return len(self.skipped)

    def write(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        about = {"rows": self.rows, "unusable": self.unusable, "recall": self.recall}
        arrays = {"keys": self.keys, **({"skipped": self.skipped} if self.unusable else {})}
        write_arrays_atomically(path, arrays, {FILE_KEY: json.dumps(about)})

    @classmethod
    def read(cls, path: Path, start: int = 0) -> Scores:
        """Read what :meth:`write` wrote of rows from ``start`` on.

        Raises:
            ValueError: If the file is missing, damaged or something else.
        """
        try:
            arrays, metadata = read_arrays(path)
            about = parse_object(path, metadata.get(FILE_KEY, ""), ABOUT)
            found = cls(arrays["keys"], about["rows"], arrays.get("skipped", np.zeros(0, np.int64)), about["recall"])
            if found.unusable != about["unusable"] or not found._is_whole(start):
                raise ValueError("it is damaged")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read as scores ({error}); delete it and run again.") from None
        return found

    def _is_whole(self, start: int) -> bool:
        """Return whether keys are best first, and all rows are such as there are; one concept at a time, for memory."""
        if self.keys.dtype != np.uint64 or self.keys.ndim != 2 or self.skipped.dtype != np.int64:
            return False
        for own in self.keys:
            some = own[own != NOTHING]
            falling = bool(((own[1:] < own[:-1]) | (own[1:] == NOTHING)).all())
            if not falling or not _within(np.sort(rows_of(some)), start, self.rows) or np.isnan(scores_of(some)).any():
                return False
        return (
            self.skipped.ndim == 1
            and _within(self.skipped, start, self.rows)
            and (self.recall is None or 0 <= self.recall <= 1)
        )


def _within(rows: np.ndarray, start: int, count: int) -> bool:
    """Return whether rows ascend, from ``start`` on and among ``count``."""
    return bool((np.diff(rows, prepend=start - 1, append=start + count) > 0).all())


ABOUT: dict[str, Any] = {"rows": int, "unusable": int, "recall": float | None}


@dataclass(frozen=True)
class Scoring:
    """Pools of the same pairs, one for each encoder, and the prototypes in each encoder's space.

    A row's score for a concept is its cosine with the prototype; with several encoders, the mean of their cosines.

    Args:
        pools: They have equally many rows.
        prototypes: Of the same concepts, one for each pool.
        k: Rows to keep for each concept.

    Raises:
        ValueError: If rows, concepts, widths or encoders do not go together.
    """

    pools: Sequence[Pool]
    prototypes: Sequence[Prototypes]
    k: int
    chunk: ClassVar[int] = 1024
    """Rows scored together. Parts of a pool are divided at multiples of it, so that each score is computed alike."""
    read_chunks: ClassVar[int] = 16
    save_seconds: ClassVar[float] = 60.0

    def __post_init__(self) -> None:
        if len(self.pools) != len(self.prototypes) or not self.pools:
            raise ValueError(f"{len(self.pools)} pools have {len(self.prototypes)} prototypes; each needs its own.")
        for pool, prototypes in zip(self.pools, self.prototypes):
            prototypes.check(pool)
            if prototypes.names != self.concepts:
                raise ValueError("the prototypes of all encoders need the same concepts in the same order.")
            if len(pool) != len(self):
                raise ValueError(
                    f"pools of several encoders hold the same pairs; {self.pools[0].name} has {len(self):,}, "
                    f"{pool.name} has {len(pool):,}."
                )
        if not len(self):
            raise ValueError(f"the pool {self.pools[0].name} is empty.")

    def __len__(self) -> int:
        return len(self.pools[0])

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts."""
        return self.prototypes[0].names

    @property
    def kept(self) -> int:
        """Rows that are kept for each concept: ``k``, or all there are."""
        return min(self.k, len(self))

    def request(self) -> dict[str, Any]:
        """Return what the scores depend on, as JSON."""
        return {
            "k": self.k,
            "prototypes": [prototypes.digest() for prototypes in self.prototypes],
            "pools": [pool.fingerprint for pool in self.pools],
        }

    def matrix(self) -> Tensor:
        """Return the prototypes (C, Σd), of unit length and divided by the number of encoders."""
        return torch.cat([prototypes.vectors for prototypes in self.prototypes], 1) / len(self.pools)

    def rows(self, rows: np.ndarray) -> Tensor:
        """Return rows (n, Σd) float32, each encoder's of unit length; NaN where a vector is zero or not finite."""
        parts = [_units(torch.as_tensor(pool.vectors.take(rows)).float()) for pool in self.pools]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def walk(
        self, start: int, stop: int, description: str, show_progress_bar: bool
    ) -> Iterator[tuple[int, Tensor, bool]]:
        """Yield rows ``start`` … ``stop - 1`` chunk by chunk, as :meth:`rows` gives them.

        Yields:
            The number of the chunk's first row, the chunk, and whether what was found is to be saved behind it: every
            ``save_seconds``, which a kill costs at most, and at the end.
        """
        from tqdm.auto import tqdm

        saved = time.monotonic()
        with tqdm(desc=description, unit="row", unit_scale=True, total=stop, initial=start, delay=1,
                  disable=not show_progress_bar) as bar:  # fmt: skip
            begins, step = range(start, stop, self.read_chunks * self.chunk), self.read_chunks * self.chunk
            blocks = (self.rows(np.arange(begin, min(begin + step, stop))) for begin in begins)
            for chunk in prefetch(chunk for block in blocks for chunk in block.split(self.chunk)):
                save = start + len(chunk) == stop or time.monotonic() - saved > self.save_seconds
                yield start, chunk, save
                saved = time.monotonic() if save else saved
                start += len(chunk)
                bar.update(len(chunk))


def _units(vectors: Tensor) -> Tensor:
    """Return vectors (n, d) of unit length; NaN where one is zero or not finite, or its square leaves float32."""
    lengths = vectors.norm(dim=1, keepdim=True)
    usable = (lengths > SHORTEST) & (lengths < 1 / SHORTEST)
    return vectors.div_(torch.where(usable, lengths, torch.nan))


def unusable_rows(products: Tensor, first: int) -> np.ndarray:
    """Return which rows are not usable, from the products (C, B) of rows from ``first`` on with the prototypes."""
    return np.flatnonzero(products[0].isnan().cpu().numpy()) + first


def score_range(
    scoring: Scoring,
    start: int,
    stop: int,
    folder: Path,
    device: str | torch.device | None = None,
    show_progress_bar: bool = False,
) -> None:
    """Score rows ``start`` … ``stop - 1`` on ``device``, by default the machine's best; go on with what is kept."""
    device = default_device() if device is None else device
    state, matrix = _state_file(folder, start, stop), scoring.matrix().to(device)
    top, begun = TopK(len(matrix), min(scoring.k, stop - start)), start
    skipped = [np.zeros(0, np.int64)]
    if state.is_file():
        found = Scores.read(state, start)
        if found.keys.shape != (len(matrix), top.k) or start + found.rows > stop:
            raise ValueError(f"{state} is of another pass; delete it and run again.")
        top.merge(found.keys)
        begun, skipped = start + found.rows, [found.skipped]
    scores = torch.empty(len(matrix), scoring.chunk, device=device)
    for first, chunk, save in scoring.walk(begun, stop, "Scoring", show_progress_bar):
        products = torch.mm(matrix, chunk.to(device).T, out=scores[:, : len(chunk)])
        top.update(products, first)
        skipped.append(unusable_rows(products, first))
        if save:
            Scores(top.sorted(), first + len(chunk) - start, np.concatenate(skipped)).write(state)


def merge_ranges(scoring: Scoring, ranges: Iterable[tuple[int, int]], folder: Path) -> Scores:
    """Return the best rows of all ranges that were scored into ``folder``."""
    top, rows, skipped = TopK(len(scoring.concepts), scoring.kept), 0, []
    for start, stop in ranges:
        found = Scores.read(_state_file(folder, start, stop), start)
        top.merge(found.keys)
        rows += found.rows
        skipped.append(found.skipped)
    return Scores(top.sorted(), rows, np.concatenate(skipped))


def _state_file(folder: Path, start: int, stop: int) -> Path:
    return folder / f"state-{start}-{stop}.safetensors"
