"""Curation from beginning to end, in a folder where it can be interrupted and taken up again."""

from __future__ import annotations

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
from freezealign.features.folder import StoreFolder
from freezealign.files import write_atomically

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
    pictures: Any = None,
    seed: int = 0,
    show_progress_bar: bool = True,
) -> Curation:
    """Select a balanced, deduplicated set of pairs out of a pool, and document it.

    Writes to ``output``: ``ids.txt``, ``selection.parquet`` (id, row, concept, score, and what the pool knows),
    ``card.md`` and ``card.json`` with figures; for a pool that is a feature store also ``features/``, the store of the
    selected pairs. Run it again after a kill, and it goes on.

    Args:
        pools: The pool, or one for each encoder, all of the same pairs.
        prototypes: The concepts in the space of each pool.
        output: Folder.
        per_concept: The most pairs a concept takes.
        candidates: Rows kept for each concept before filters and balancing; 4 · ``per_concept`` by default.
        filters: What candidates must pass, in this order; equal ids are always filtered, first.
        engine: ``ray`` divides the pool among machines; ``faiss`` searches approximately.
        device: Where matrix products run, with engine ``local``.
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
    scoring = Scoring(pools, prototypes, candidates or CANDIDATES * per_concept)
    folder = Path(output)
    scores = score_pool(
        scoring, folder / "scores", engine=engine, device=device, seed=seed, show_progress_bar=show_progress_bar
    )
    rows, report = apply_filters(
        [EqualIds(), *filters], pools[0], candidate_rows(scores.keys), scores.keys, folder / "filters"
    )
    selection = select_balanced(scores.keys, per_concept, rows)
    if not len(selection):
        raise ValueError(f"no pair is left after the filters: {[(f['filter'], f['removed']) for f in report]}.")
    curation = Curation(
        pools[0],
        [pool.name for pool in pools],
        scoring.concepts,
        [{"encoder": p.origin and p.origin.name, **p.provenance} for p in prototypes],
        per_concept,
        scores,
        report,
        selection,
        *_sample(scoring, seed),
    )
    _write(curation, folder)
    write_card(curation, folder, _pictures(curation, pictures))
    return curation


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

    ids, selection = curation.ids, curation.selection
    columns: dict[str, Any] = {
        "id": ids,
        "row": selection.rows,
        "concept": [curation.concepts[concept] for concept in selection.concepts],
        "score": selection.scores,
    }
    known = [field for field in ("caption", "url", "licence", "similarity") if curation.pool.has(field)]
    columns |= {field: curation.pool.take(selection.rows, field) for field in known}
    table = pyarrow.table(columns)
    write_atomically(folder / "selection.parquet", lambda file: parquet.write_table(table, file))
    write_atomically(folder / "ids.txt", lambda file: file.write("".join(f"{name}\n" for name in ids).encode()))
    if curation.pool.store is not None:
        _save_store(curation.pool.store.select(np.sort(selection.rows)), folder / "features")


def _save_store(store: FeatureStore, path: Path) -> None:
    """Write the features of the selection, unless they are there; what a kill left half written is written again."""
    if path.exists() and StoreFolder(path).exists and StoreFolder(path).complete:
        if FeatureStore.open(path).ids == store.ids:
            return
        raise ValueError(f"{path} holds another selection; choose another folder.")
    shutil.rmtree(path, ignore_errors=True)
    store.save(path)


def _pictures(curation: Curation, source: Any) -> Mapping[str, Any]:
    """Return the pictures of the sheet by id."""
    if source is None:
        return {}
    wanted = {str(key) for own in sheet_rows(curation).values() for key in curation.pool.take(own, "id")}
    return find_pictures(source, wanted)


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
