"""Scoring: one pass over a pool, which leaves the K best rows of each concept. A kill costs a minute of it at most."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from freezealign.curation.pools import Pool
from freezealign.curation.prototypes import Prototypes
from freezealign.curation.top_k import TopK
from freezealign.files import write_arrays_atomically
from freezealign.prefetch import prefetch

TILE = 1024
"""Rows scored together. Ranges of a pool are divided at multiples of it, so that each score is computed alike."""
READ_TILES = 16
FILE_KEY = "freezealign_scores"
SHORTEST = 1e-15
SAVE_SECONDS = 60.0
Engine = Literal["local", "ray", "faiss"]


@dataclass(frozen=True)
class Scores:
    """The best rows of each concept.

    Args:
        keys: (C, K) uint64, best first; see :mod:`freezealign.curation.top_k`.
        rows: How many rows of the pool were looked at.
        unusable: How many of them have a vector that is zero or not finite; they are never candidates.
        recall: The share of the exact result that an approximate search found; ``None`` where it is exact.
    """

    keys: np.ndarray
    rows: int
    unusable: int
    recall: float | None = None


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

    def __post_init__(self) -> None:
        if len(self.pools) != len(self.prototypes) or not self.pools:
            raise ValueError(f"{len(self.pools)} pools have {len(self.prototypes)} prototypes; each needs its own.")
        for pool, prototypes in zip(self.pools, self.prototypes):
            prototypes.check(pool)
            if prototypes.names != self.prototypes[0].names:
                raise ValueError("the prototypes of all encoders need the same concepts in the same order.")
            if len(pool) != len(self.pools[0]):
                raise ValueError(
                    f"pools of several encoders hold the same pairs; {self.pools[0].name} has "
                    f"{len(self.pools[0]):,}, {pool.name} has {len(pool):,}."
                )
        if not len(self.pools[0]):
            raise ValueError(f"the pool {self.pools[0].name} is empty.")

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts."""
        return self.prototypes[0].names

    def request(self) -> dict[str, Any]:
        """Return what the scores depend on, as JSON."""
        return {
            "k": self.k,
            "prototypes": [prototypes.digest() for prototypes in self.prototypes],
            "pools": [pool.fingerprint() for pool in self.pools],
        }

    def matrix(self) -> Tensor:
        """Return the prototypes (C, Σd), of unit length and divided by the number of encoders."""
        return torch.cat([prototypes.vectors for prototypes in self.prototypes], 1) / len(self.pools)

    def rows(self, rows: np.ndarray) -> Tensor:
        """Return rows (n, Σd) float32, each encoder's of unit length; NaN where a vector is zero or not finite."""
        parts = [_units(torch.as_tensor(pool.vectors.take(rows)).float()) for pool in self.pools]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _units(vectors: Tensor) -> Tensor:
    """Return vectors (n, d) of unit length; NaN where one is zero or not finite, or its square leaves float32."""
    lengths = vectors.norm(dim=1, keepdim=True)
    usable = (lengths > SHORTEST) & (lengths < 1 / SHORTEST)
    return vectors.div_(torch.where(usable, lengths, torch.nan))


def score_pool(
    scoring: Scoring,
    folder: Path,
    *,
    engine: Engine = "local",
    device: str | torch.device = "cpu",
    seed: int = 0,
    show_progress_bar: bool = True,
) -> Scores:
    """Score all rows and keep ``folder/scores.safetensors``; run again after a kill, it goes on.

    Args:
        scoring: What to compare.
        folder: For the result, and the state of a pass that is under way.
        engine: ``ray`` divides the pool among the machines of a cluster, which all see ``folder`` and the pool;
            ``faiss`` searches approximately.
        device: Where the matrix products run, with engine ``local``.
        seed: Of the approximate index.
        show_progress_bar: Show progress if it takes longer than a second.

    Raises:
        ModuleNotFoundError: If the engine is not installed.
        ValueError: If the folder holds scores of something else, or a damaged or short file.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"unknown engine {engine!r}; choose one of {get_args(Engine)}.")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"there is no device {device!r}: {error}") from None
    if engine != "local" and device.type != "cpu":
        raise ValueError(f"a device goes with engine 'local'; {engine} chooses its own.")
    result, base = folder / "scores.safetensors", scoring.request()
    request = {**base, "approximate": {"seed": seed} if engine == "faiss" else None}
    if not result.is_file():
        _score(scoring, base, engine, device, seed, show_progress_bar, folder).write(result, request)
    for leftover in folder.glob("state*.safetensors"):
        leftover.unlink()
    return _finished(result, request, scoring)


def _score(
    scoring: Scoring,
    request: dict[str, Any],
    engine: Engine,
    device: torch.device,
    seed: int,
    show_progress_bar: bool,
    folder: Path,
) -> _State:
    """Return the state after all rows."""
    rows = len(scoring.pools[0])
    if engine == "faiss":
        from freezealign.curation.approximate import search_with_faiss

        keys, unusable, recall = search_with_faiss(scoring, request, folder, seed, show_progress_bar)
        return _State(keys, 0, rows, rows, unusable, recall)
    if engine == "ray":
        from freezealign.curation.cluster import score_with_ray

        states = score_with_ray(scoring, folder, show_progress_bar)
    else:
        states = [folder / "state.safetensors"]
        score_range(scoring, 0, rows, states[0], device, show_progress_bar)
    top, unusable = TopK(len(scoring.concepts), scoring.k), 0
    for state in states:
        found = _State.read(state, request)
        top.merge(found.keys)
        unusable += found.unusable
    return _State(top.sorted(), 0, rows, rows, unusable)


def score_range(
    scoring: Scoring,
    start: int,
    stop: int,
    state: Path,
    device: str | torch.device = "cpu",
    show_progress_bar: bool = False,
) -> None:
    """Score rows ``start`` … ``stop - 1``; what was found is in the file ``state``, which is gone on with."""
    from tqdm.auto import tqdm

    request, matrix = scoring.request(), scoring.matrix().to(device)
    top, position, unusable = TopK(len(matrix), min(scoring.k, stop - start)), start, 0
    if state.is_file():
        begun = _State.read(state, request)
        if (begun.start, begun.stop) != (start, stop):
            raise ValueError(f"{state} was begun for rows {begun.start} to {begun.stop}, not {start} to {stop}.")
        top.merge(begun.keys)
        position, unusable = begun.position, begun.unusable
    scores = torch.empty(len(matrix), TILE, device=device)
    saved = time.monotonic()
    bar = tqdm(
        desc="Scoring", unit="row", unit_scale=True, total=stop - start, initial=position - start, delay=1,
        disable=not show_progress_bar,
    )  # fmt: skip
    with bar:
        for tile in prefetch(tiles(scoring, position, stop)):
            found = torch.mm(matrix, tile.to(device).T, out=scores[:, : len(tile)])
            top.update(found, position)
            unusable += int(found[0].isnan().sum())
            position += len(tile)
            bar.update(len(tile))
            if time.monotonic() - saved > SAVE_SECONDS:
                _State(top.sorted(), start, stop, position, unusable).write(state, request)
                saved = time.monotonic()
    _State(top.sorted(), start, stop, position, unusable).write(state, request)


def tiles(scoring: Scoring, start: int, stop: int) -> Iterator[Tensor]:
    """Yield rows ``start`` … ``stop - 1`` in tiles."""
    for begin in range(start, stop, READ_TILES * TILE):
        yield from scoring.rows(np.arange(begin, min(begin + READ_TILES * TILE, stop))).split(TILE)


def _finished(path: Path, request: dict[str, Any], scoring: Scoring) -> Scores:
    state, rows = _State.read(path, request), len(scoring.pools[0])
    if state.position != rows or state.keys.shape != (len(scoring.concepts), scoring.k):
        raise ValueError(f"{path} is short: {state.position:,} of {rows:,} rows; delete it and run again.")
    return Scores(state.keys, rows, state.unusable, state.recall)


@dataclass(frozen=True)
class _State:
    """What is known after a part of a range: rows ``start`` … ``position - 1`` of ``start`` … ``stop - 1``."""

    keys: np.ndarray
    start: int
    stop: int
    position: int
    unusable: int
    recall: float | None = None

    def write(self, path: Path, request: dict[str, Any]) -> None:
        about = {key: getattr(self, key) for key in ("start", "stop", "position", "unusable", "recall")}
        content = json.dumps({"about": about, "request": request})
        write_arrays_atomically(path, {"keys": self.keys}, {FILE_KEY: content})

    @classmethod
    def read(cls, path: Path, request: dict[str, Any]) -> _State:
        try:
            with safe_open(str(path), "np") as file:
                content = json.loads(file.metadata()[FILE_KEY])
                state, begun = cls(file.get_tensor("keys"), **content["about"]), content["request"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as scores ({error}); delete it and run again.") from None
        for key, value in request.items():
            if begun.get(key) != value:
                raise ValueError(
                    f"{path} holds scores made with another {key}: {begun.get(key)}, this run has {value}. "
                    "Choose another folder, or delete it."
                )
        return state
