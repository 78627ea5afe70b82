"""Approximate search with FAISS: an index of a few bytes a row, and the share of the exact result that it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from freezealign.curation.scoring import Scores, Scoring, unusable_rows
from freezealign.curation.top_k import NOTHING, TopK, as_keys, rows_of
from freezealign.files import write_atomically

TRAINING_ROWS = 64
"""Rows that are drawn for each list of the index to train it."""
MOST_TRAINING_ROWS = 500_000
FEWEST_ROWS = 256
"""As many centroids has a part of a quantised vector."""
RECALL_CONCEPTS = 32


def search_with_faiss(scoring: Scoring, folder: Path, seed: int, show_progress_bar: bool) -> Scores:
    """Return what an inverted file of product-quantised vectors finds, which is kept in ``folder``, and its recall.

    The index has 4·√n lists, an eighth of which are searched, and a byte for 8 numbers of a vector. Rows that it finds
    get their exact scores. Recall is the share of the exact K best that is found, over ``RECALL_CONCEPTS`` concepts.

    Indexing goes on after a kill; measuring recall, a pass of ``RECALL_CONCEPTS`` products a row, begins anew.
    """
    try:
        import faiss
    except ModuleNotFoundError:
        raise ModuleNotFoundError("engine='faiss' needs: pip install 'freezealign[scale]'") from None
    if len(scoring) < FEWEST_ROWS:
        raise ValueError(f"an approximate index needs {FEWEST_ROWS} rows; use the exact engine for this pool.")
    index = _build(faiss, scoring, folder / "index.faiss", seed, show_progress_bar)
    index.nprobe = max(1, index.nlist // 8)
    keys = _rescored(scoring, index.search(scoring.matrix().numpy(), scoring.kept)[1])
    skipped, recall = _recall(scoring, keys, seed, show_progress_bar)
    return Scores(keys, len(scoring), skipped, recall)


def _build(faiss: Any, scoring: Scoring, path: Path, seed: int, show_progress_bar: bool) -> Any:
    """Return the index of all rows, going on with the one at ``path``."""
    width = scoring.matrix().shape[1]
    if path.is_file():
        try:
            index = faiss.read_index(str(path))
            if not isinstance(index, faiss.IndexIVFPQ) or index.d != width or index.ntotal > len(scoring):
                raise ValueError("it is of another pool")
        except (RuntimeError, ValueError, MemoryError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run again.") from None
    else:
        index = _train(faiss, scoring, seed)
    for _, chunk, save in scoring.walk(index.ntotal, len(scoring), "Indexing", show_progress_bar):
        index.add(chunk.nan_to_num().numpy())  # zeros are found last, and left out when they are scored
        if save:
            write_atomically(path, lambda file: faiss.write_index(index, faiss.PyCallbackIOWriter(file.write)))
    return index


def _train(faiss: Any, scoring: Scoring, seed: int) -> Any:
    rows, width = len(scoring), scoring.matrix().shape[1]
    lists = max(1, int(4 * np.sqrt(rows)))
    wanted = min(rows, TRAINING_ROWS * lists, MOST_TRAINING_ROWS)
    sample = np.sort(np.random.default_rng(seed).choice(rows, wanted, replace=False))
    parts = next(size for size in range(max(1, width // 8), 0, -1) if width % size == 0)
    lists = max(1, min(lists, len(sample) // 39))  # FAISS warns below 39 vectors a centroid
    index = faiss.index_factory(width, f"IVF{lists},PQ{parts}x8", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed
    vectors = scoring.rows(sample)
    index.train(vectors[~vectors.isnan().any(1)].numpy())
    return index


def _rescored(scoring: Scoring, found: np.ndarray) -> np.ndarray:
    """Return keys (C, K) of the rows (C, K) that were found, -1 for none, with their exact scores."""
    matrix, keys = scoring.matrix(), np.full((len(found), scoring.kept), NOTHING)
    for concept, rows in enumerate(found):
        own = np.unique(rows[rows >= 0])
        scores = (scoring.rows(own) @ matrix[concept]).numpy()
        usable = ~np.isnan(scores)
        keys[concept, : usable.sum()] = np.sort(as_keys(scores[usable], own[usable]))[::-1]
    return keys


def _recall(scoring: Scoring, keys: np.ndarray, seed: int, show_progress_bar: bool) -> tuple[np.ndarray, float]:
    """Return which rows are unusable, and the share of the exact result that is among the keys (C, K)."""
    some = np.sort(np.random.default_rng(seed).choice(len(keys), min(len(keys), RECALL_CONCEPTS), replace=False))
    top, matrix, skipped = TopK(len(some), scoring.kept), scoring.matrix()[some], []
    for first, chunk, _ in scoring.walk(0, len(scoring), "Recall", show_progress_bar):
        products = matrix @ chunk.T
        top.update(products, first)
        skipped.append(unusable_rows(products, first))
    best = [rows_of(own[own > 0]) for own in top.sorted()]
    hits = [np.isin(right, rows_of(keys[concept])).sum() for concept, right in zip(some, best)]
    return np.concatenate(skipped), float(np.sum(hits) / max(1, sum(map(len, best))))
