"""Curation from beginning to end, in a folder where it can be interrupted and taken up again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freezealign.curation.card import sheet_rows, write_card
from freezealign.curation.filters import EqualIds, Filter, apply_filters
from freezealign.curation.pools import Pool
from freezealign.curation.prototypes import Prototypes
from freezealign.curation.scoring import Engine, Scores, Scoring, score_pool
from freezealign.curation.selection import Selection, candidate_rows, select_balanced
from freezealign.features import FeatureStore
from freezealign.files import read_json, write_atomically, write_json_atomically
from freezealign.inputs import shorten

SAMPLED_ROWS = 20_000
CANDIDATES = 4
"""Rows looked at for each that a concept may take: filters and other concepts take some away."""


@dataclass(frozen=True)
class Curation:
    """What was selected, and what the data card tells of it.

    Args:
        pool: The pool; with several encoders, the first.
        pools: Names of the pools.
        concepts: Names of the concepts.
        provenance: Of the prototypes of each pool.
        per_concept: The most pairs a concept took.
        scores: The candidates.
        filters: What each filter removed.
        selection: The selected rows.
        sample_concepts: (m,) the concept that each row of a random sample of the pool is most like.
        sample_scores: (m,) float32, its score there.
    """

    pool: Pool
    pools: list[str]
    concepts: tuple[str, ...]
    provenance: list[dict[str, Any]]
    per_concept: int
    scores: Scores
    filters: list[dict[str, Any]]
    selection: Selection
    sample_concepts: np.ndarray
    sample_scores: np.ndarray

    @property
    def ids(self) -> list[str]:
        """The ids of the selected pairs, in the order of the selection."""
        return [str(name) for name in self.pool.take(self.selection.rows, "id")]


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
    show_progress_bar: bool = True,
) -> Curation:
    """Select a balanced, deduplicated set of pairs out of a pool, and document it.

    Writes to ``output``: ``ids.txt``, ``selection.parquet`` (id, row, concept, score, and what the pool knows),
    ``card.md`` and ``card.json`` with figures; for a pool that is a feature store also ``features/``, the store of the
    selected pairs. ``output`` is new, or holds the same curation: after a kill, run it again and it goes on.

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
        show_progress_bar: Show progress of what takes longer than a second.

    Returns:
        What was selected; ``.ids`` names it.

    Raises:
        ModuleNotFoundError: If an engine or filter needs a package that is not installed.
        ValueError: If pools and prototypes do not go together, ``output`` holds another curation, or nothing is left.
    """
    pools = [pools] if isinstance(pools, Pool) else list(pools)
    prototypes = [prototypes] if isinstance(prototypes, Prototypes) else list(prototypes)
    candidates, filters = CANDIDATES * per_concept if candidates is None else candidates, [EqualIds(), *filters]
    if not 1 <= per_concept <= candidates:
        raise ValueError(f"a concept takes 1 pair or more of its candidates, got {per_concept} of {candidates}.")
    scoring, folder = Scoring(pools, prototypes, candidates), Path(output)
    for one in filters:
        one.check(pools[0])
    _begin(folder, scoring, per_concept, filters, engine, seed)
    place = folder / "scores" if scores is None else Path(scores)
    best = score_pool(scoring, place, engine=engine, device=device, seed=seed, show_progress_bar=show_progress_bar)
    rows, report = apply_filters(filters, pools[0], candidate_rows(best.keys), best.keys, folder / "filters")
    selection = select_balanced(best.keys, per_concept, rows)
    if not len(selection):
        raise ValueError(f"no pair is left after the filters: {[(f['filter'], f['removed']) for f in report]}.")
    curation = Curation(
        pools[0],
        [pool.name for pool in pools],
        scoring.concepts,
        [{"encoder": p.origin and p.origin.name, **p.provenance} for p in prototypes],
        per_concept,
        best,
        report,
        selection,
        *_sample(scoring, seed),
    )
    _write(curation, folder)
    write_card(curation, folder, _pictures(curation, pictures))
    return curation


def _begin(
    folder: Path, scoring: Scoring, per_concept: int, filters: Sequence[Filter], engine: Engine, seed: int
) -> None:
    """Begin a curation, or go on with the same one; keep its prototypes.

    Raises:
        ValueError: If the folder holds another, or something else.
    """
    request = {
        **scoring.request(),
        "per_concept": per_concept,
        "filters": [{"filter": one.name, **one.request()} for one in filters],
        "approximate": engine == "faiss",
        "seed": seed,
    }
    path = folder / "request.json"
    if not path.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no curation; choose another folder.")
        for number, prototypes in enumerate(scoring.prototypes):
            prototypes.save(folder / f"prototypes-{number}.safetensors")
        write_json_atomically(path, request)
    begun = read_json(path)
    if other := [key for key, value in json.loads(json.dumps(request)).items() if begun.get(key) != value]:
        raise ValueError(
            f"{folder} holds a curation with other {', '.join(other)}; choose another folder, or delete that one."
        )


def _sample(scoring: Scoring, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best concept and score of each row of a random sample whose vector is usable."""
    rows = len(scoring.pools[0])
    chosen = np.random.default_rng(seed).choice(rows, min(rows, SAMPLED_ROWS), replace=False)
    vectors = scoring.rows(np.sort(chosen))
    best = (vectors[~vectors.isnan().any(1)] @ scoring.matrix().T).max(1)
    return best.indices.numpy(), best.values.numpy()


def _write(curation: Curation, folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    selection = curation.selection
    columns: dict[str, Any] = {
        "id": [_encodable(name) for name in curation.ids],
        "row": selection.rows,
        "concept": [curation.concepts[concept] for concept in selection.concepts],
        "score": selection.scores,
    }
    for field in ("caption", "url", "licence", "similarity"):
        if curation.pool.has(field):
            columns[field] = [_encodable(value) for value in curation.pool.take(selection.rows, field)]
    table = pyarrow.table(columns)
    write_atomically(folder / "selection.parquet", lambda file: parquet.write_table(table, file))
    lines = "".join(f"{name}\n" for name in columns["id"])
    write_atomically(folder / "ids.txt", lambda file: file.write(lines.encode()))
    if curation.pool.store is not None and not (folder / "features").exists():
        _save_store(curation.pool.store.select(np.sort(selection.rows)), folder / "features")


def _encodable(value: Any) -> Any:
    """Return a string without lone surrogates, which file names may hold and UTF-8 may not."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _save_store(store: FeatureStore, path: Path) -> None:
    """Write the features of the selection whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    store.save(partial)
    partial.rename(path)


def _pictures(curation: Curation, source: Any) -> Mapping[str, Any]:
    """Return the pictures of the sheet by id."""
    if source is None:
        return {}
    wanted = {str(key) for own in sheet_rows(curation).values() for key in curation.pool.take(own, "id")}
    found = find_pictures(source, wanted)
    if not found:
        raise ValueError(f"none of the {len(wanted)} pictures of the sheet is in {shorten(source)}; their ids differ.")
    return found


def find_pictures(source: Any, ids: Collection[str]) -> dict[str, Any]:
    """Return the pictures of some pairs by id, read from the beginning of ``source`` until all are found."""
    from freezealign.data.sources import open_pairs

    found: dict[str, Any] = {}
    for position, pair in enumerate(open_pairs(source)):
        key = str(pair.get("id", position))
        if key in ids:
            found[key] = pair["image"]
            if len(found) == len(ids):
                break
    return found
