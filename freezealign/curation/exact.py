"""The exact pass over a pool or a part of it, which can be killed and gone on with; parts are merged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from freezealign.curation.scoring import Scores, Scoring
from freezealign.curation.top_k import TopK


def score_range(
    scoring: Scoring,
    start: int,
    stop: int,
    folder: Path,
    device: str | torch.device = "cpu",
    show_progress_bar: bool = False,
) -> None:
    """Score rows ``start`` … ``stop - 1``; what was found is kept in ``folder``, and gone on with."""
    state, matrix = _state_file(folder, start, stop), scoring.matrix().to(device)
    top, begun = TopK(len(matrix), min(scoring.k, stop - start)), start
    unusable = 0
    if state.is_file():
        found = Scores.read(state)
        top.merge(found.keys)
        begun, unusable = start + found.rows, found.unusable
    scores = torch.empty(len(matrix), scoring.chunk, device=device)
    for first, chunk, save in scoring.walk(begun, stop, "Scoring", show_progress_bar):
        products = torch.mm(matrix, chunk.to(device).T, out=scores[:, : len(chunk)])
        top.update(products, first)
        unusable += int(products[0].isnan().sum())
        if save:
            Scores(top.sorted(), first + len(chunk) - start, unusable).write(state)


def merge_ranges(scoring: Scoring, ranges: Iterable[tuple[int, int]], folder: Path) -> Scores:
    """Return the best rows of all ranges that were scored into ``folder``."""
    top, rows, unusable = TopK(len(scoring.concepts), scoring.k), 0, 0
    for start, stop in ranges:
        found = Scores.read(_state_file(folder, start, stop))
        top.merge(found.keys)
        rows, unusable = rows + found.rows, unusable + found.unusable
    return Scores(top.sorted(), rows, unusable)


def _state_file(folder: Path, start: int, stop: int) -> Path:
    return folder / f"state-{start}-{stop}.safetensors"
