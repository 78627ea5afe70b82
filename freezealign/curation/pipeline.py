"""Curation from beginning to end, in a folder where it can be interrupted and taken up again."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freezealign.curation.card import Curation, write_card
from freezealign.curation.engines import Engine, score_pool
from freezealign.curation.filters import EqualIds, Filter, apply_filters, find_unreadable
from freezealign.curation.pools import Pool
from freezealign.curation.prototypes import Prototypes
from freezealign.curation.scoring import Scores, Scoring
from freezealign.curation.selection import candidate_rows, select_balanced
from freezealign.files import claim, exclusive, write_atomically, write_lines
from freezealign.inputs import Skipped

SAMPLED_ROWS = 20_000
CANDIDATES = 4
"""Rows looked at for each that a concept may take: filters and other concepts take some away."""

UNUSABLE = "its vector is missing, zero, not finite or of another width"


def curate(
    pools: Pool | Sequence[Pool],
    prototypes: Prototypes | Sequence[Prototypes],
    output: str | PathLike[str],
    *,
    per_concept: int = 2000,
    candidates: int | None = None,
    filters: Sequence[Filter] = (),
    engine: Engine = "local",
    device: str | torch.device = "cpu",
    scores: str | PathLike[str] | None = None,
    pictures: Any = None,
    seed: int = 0,
    strict: bool = False,
    show_progress_bar: bool = True,
) -> Curation:
    """Select a balanced, deduplicated set of pairs out of a pool, and document it.

    Writes to ``output``: ``ids.txt``, ``selection.parquet`` (id, row, concept, score, and what the pool knows),
    ``skipped.parquet`` (row, reason), ``card.md`` and ``card.json`` with figures; for a pool that is a feature store
    also ``features/``, the store of the selected pairs. ``output`` is new, or holds the same curation: after a kill,
    run it again and it goes on.

    Rows whose vector is missing, zero, not finite or of another width, and candidates without an id or with something
    that cannot be read are left out, counted and listed.

    Args:
        pools: The pool, or one for each encoder, all of the same pairs.
        prototypes: The concepts in the space of each pool.
        output: Folder.
        per_concept: The most pairs a concept takes.
        candidates: Rows kept for each concept before filters and balancing; 4 · ``per_concept`` by default.
        filters: What candidates must pass, in this order; equal ids are always filtered, first.
        engine: ``ray`` divides the pool among machines; ``faiss`` searches approximately.
        device: Where matrix products run, with engine ``local``.
        scores: Folder for the result of the pass over the pool, so that curations with other quotas or filters share
            it; by default below ``output``.
        pictures: Where the pool's pictures are, for a sheet of examples: what ``open_pairs`` reads, or pairs.
        seed: Of the sample of the pool that the card describes, and of the approximate index.
        strict: Raise where a row would be left out because it cannot be used or read; what was scored is kept.
        show_progress_bar: Show progress of what takes longer than a second.

    Returns:
        What was selected; ``.ids`` names it.

    Raises:
        FileExistsError: If ``output`` or ``scores`` holds something else.
        ModuleNotFoundError: If an engine or filter needs a package that is not installed.
        RuntimeError: If another process is writing to one of them.
        ValueError: If pools and prototypes do not go together, ``output`` holds another curation, nothing is left, or
            with ``strict`` a row cannot be used; the message names the first.
    """
    pools = [pools] if isinstance(pools, Pool) else list(pools)
    prototypes = [prototypes] if isinstance(prototypes, Prototypes) else list(prototypes)
    candidates, filters = CANDIDATES * per_concept if candidates is None else candidates, [EqualIds(), *filters]
    if not 1 <= per_concept <= candidates:
        raise ValueError(f"a concept takes 1 pair or more of its candidates, got {per_concept} of {candidates}.")
    scoring, folder = Scoring(pools, prototypes, candidates), Path(output)
    place = folder / "scores" if scores is None else Path(scores)
    if place.resolve() == folder.resolve():
        raise ValueError(f"scores have a folder of their own, got {place}, which is the output's.")
    request = _request(scoring, per_concept, filters, engine, seed)
    with exclusive(folder):
        claim(folder / "request.json", request, "curation")
        for number, own in enumerate(prototypes):
            own.save(folder / f"prototypes-{number}.safetensors")
        best = score_pool(scoring, place, engine=engine, device=device, seed=seed, show_progress_bar=show_progress_bar)
        curation = _select(scoring, per_concept, best, filters, folder / "filters", seed, strict)
        _write(curation, folder, pictures)
    return curation


def _request(
    scoring: Scoring, per_concept: int, filters: Sequence[Filter], engine: Engine, seed: int
) -> dict[str, Any]:
    """Return all that a curation depends on, as JSON, after each filter has found that it can judge the pool."""
    for one in filters:
        one.check(scoring.pools[0])
    return {
        **scoring.request(),
        "per_concept": per_concept,
        "filters": [one.settings() for one in filters],
        "approximate": engine == "faiss",
        "seed": seed,
    }


def _select(
    scoring: Scoring, per_concept: int, best: Scores, filters: Sequence[Filter], folder: Path, seed: int, strict: bool
) -> Curation:
    """Return what is selected of the best of each concept: what can be read, and passes the filters, in turn."""
    pool, rows = scoring.pools[0], candidate_rows(best.keys)
    unreadable = find_unreadable(pool, rows)
    skipped = [Skipped(row, UNUSABLE) for row in best.skipped.tolist()] + unreadable
    first = "".join(f", row {entry.index}: {entry.reason}" for entry in skipped[:1])
    told = f"{len(skipped):,} rows cannot be used{first}"
    if strict and skipped:
        raise ValueError(f"of {pool.name} {told}. Mend the pool, or leave out strict.")
    rows = np.setdiff1d(rows, [entry.index for entry in unreadable])
    rows, report = apply_filters(filters, pool, rows, best.keys, folder)
    selection = select_balanced(best.keys, per_concept, rows)
    if not len(selection):
        removed = [(f["filter"], f["removed"]) for f in report]
        raise ValueError(f"no pair is left after the filters: {removed}; {told}.")
    return Curation(scoring, per_concept, best, skipped, report, selection, *_sample(scoring, seed))


def _sample(scoring: Scoring, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best concept and score of each row of a random sample whose vector is usable."""
    chosen = np.random.default_rng(seed).choice(len(scoring), min(len(scoring), SAMPLED_ROWS), replace=False)
    vectors = scoring.rows(np.sort(chosen))
    best = (vectors[~vectors.isnan().any(1)] @ scoring.matrix().T).max(1)
    return best.indices.numpy(), best.values.numpy()


def _write(curation: Curation, folder: Path, pictures: Any) -> None:
    pool, selection = curation.pool, curation.selection
    columns: dict[str, Any] = {
        "id": _uniform(curation.own_ids),
        "row": selection.rows,
        "concept": _uniform([curation.concepts[concept] for concept in selection.concepts]),
        "score": selection.scores,
    }
    for field in ("caption", "url", "licence", "similarity"):
        if pool.has(field):
            columns[field] = _uniform(pool.take(selection.rows, field))
    _write_table(folder / "selection.parquet", columns)
    rows, reasons = [entry.index for entry in curation.skipped], [entry.reason for entry in curation.skipped]
    _write_table(folder / "skipped.parquet", {"row": np.array(rows, np.int64), "reason": _uniform(reasons)})
    write_lines(folder / "ids.txt", curation.ids)
    if pool.store is not None and not (folder / "features").exists():
        pool.store.select(np.sort(selection.rows)).save(folder / "features")
    write_card(curation, folder, pictures)


def _write_table(path: Path, columns: dict[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(columns)
    write_atomically(path, lambda file: parquet.write_table(table, file))


def _uniform(values: list[Any]) -> list[Any]:
    """Return values of one type, texts without lone surrogates, which file names may hold and UTF-8 may not."""
    if len({type(value) for value in values if value is not None}) > 1:
        values = [None if value is None else str(value) for value in values]
    return [value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value for value in values]
