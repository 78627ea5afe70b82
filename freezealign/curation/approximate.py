"""Approximate search with FAISS: an index of a few bytes a row, and the share of the exact result that it finds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from freezealign.curation.top_k import TopK, as_keys, rows_of
from freezealign.files import read_json, write_json_atomically
from freezealign.prefetch import prefetch

if TYPE_CHECKING:
    from freezealign.curation.scoring import Scoring

TRAINING_ROWS = 64
"""Rows that are drawn for each list of the index to train it."""
MOST_TRAINING_ROWS = 500_000
FEWEST_ROWS = 256
"""As many centroids has a part of a quantised vector."""
RECALL_CONCEPTS = 32


def search_with_faiss(
    scoring: Scoring, request: dict[str, Any], folder: Path, seed: int, show_progress_bar: bool
) -> tuple[np.ndarray, int, float]:
    """Return keys (C, K) of rows found in an inverted file of product-quantised vectors, unusable rows, and recall.

    The index has 4·√n lists, an eighth of which are searched, and a byte for 8 numbers of a vector. Rows that it finds
    get their exact scores. Recall is the share of the exact K best that is found, over ``RECALL_CONCEPTS`` concepts.

    Indexing goes on after a kill; measuring recall, a pass of ``RECALL_CONCEPTS`` products a row, begins anew.

    Raises:
        ModuleNotFoundError: If faiss is not installed.
        ValueError: If the pool is too small, or the folder holds the index of something else or a damaged one.
    """
    try:
        import faiss
    except ModuleNotFoundError:
        raise ModuleNotFoundError("engine='faiss' needs: pip install 'freezealign[scale]'") from None
    if len(scoring.pools[0]) < FEWEST_ROWS:
        raise ValueError(f"an approximate index needs {FEWEST_ROWS} rows; use the exact engine for this pool.")
    index = _build(faiss, scoring, {**request, "seed": seed}, folder, show_progress_bar)
    index.nprobe = max(1, index.nlist // 8)
    found = index.search(scoring.matrix().numpy(), scoring.k)[1]
    keys = _rescored(scoring, found)
    unusable, recall = _recall(scoring, keys, seed, show_progress_bar)
    for file in (folder / "index.faiss", folder / "index.json"):
        file.unlink()
    return keys, unusable, recall


def _build(faiss: Any, scoring: Scoring, request: dict[str, Any], folder: Path, show_progress_bar: bool) -> Any:
    """Return the index of all rows; a kill costs a minute of adding them at most."""
    from tqdm.auto import tqdm

    from freezealign.curation import scoring as exact

    path = folder / "index.faiss"
    if path.is_file():
        if read_json(folder / "index.json") != json.loads(json.dumps(request)):
            raise ValueError(f"{path} is the index of another pool, prototypes or seed; choose another folder.")
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run again.") from None
    else:
        index = _train(faiss, scoring, request["seed"])
        write_json_atomically(folder / "index.json", request)
    rows, saved = len(scoring.pools[0]), time.monotonic()
    with tqdm(desc="Indexing", unit="row", unit_scale=True, total=rows, initial=index.ntotal, delay=1,
              disable=not show_progress_bar) as bar:  # fmt: skip
        for tile in prefetch(exact.tiles(scoring, index.ntotal, rows)):
            index.add(tile.nan_to_num().numpy())  # zeros are found last, and left out when they are scored
            bar.update(len(tile))
            if time.monotonic() - saved > exact.SAVE_SECONDS or index.ntotal == rows:
                faiss.write_index(index, str(path.with_suffix(".tmp")))
                path.with_suffix(".tmp").replace(path)
                saved = time.monotonic()
    return index


def _train(faiss: Any, scoring: Scoring, seed: int) -> Any:
    rows = len(scoring.pools[0])
    width = scoring.matrix().shape[1]
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
    top, matrix = TopK(len(found), scoring.k), scoring.matrix()
    keys = np.zeros((len(found), scoring.k), np.uint64)
    for concept, rows in enumerate(found):
        own = np.unique(rows[rows >= 0])
        scores = (scoring.rows(own) @ matrix[concept]).numpy()
        usable = ~np.isnan(scores)
        keys[concept, : usable.sum()] = as_keys(scores[usable], own[usable])
    top.merge(keys)
    return top.sorted()


def _recall(scoring: Scoring, keys: np.ndarray, seed: int, show_progress_bar: bool) -> tuple[int, float]:
    """Return how many rows are unusable, and the share of the exact result that is among the keys (C, K)."""
    from tqdm.auto import tqdm

    from freezealign.curation import scoring as exact

    some = np.sort(np.random.default_rng(seed).choice(len(keys), min(len(keys), RECALL_CONCEPTS), replace=False))
    top, matrix, position = TopK(len(some), scoring.k), scoring.matrix()[some], 0
    rows, unusable = len(scoring.pools[0]), 0
    with tqdm(desc="Recall", unit="row", unit_scale=True, total=rows, delay=1, disable=not show_progress_bar) as bar:
        for tile in prefetch(exact.tiles(scoring, 0, rows)):
            top.update(matrix @ tile.T, position)
            position += len(tile)
            unusable += int(tile.isnan().any(1).sum())
            bar.update(len(tile))
    best = [rows_of(own[own > 0]) for own in top.sorted()]
    hits = [np.isin(right, rows_of(keys[concept])).sum() for concept, right in zip(some, best)]
    return unusable, float(np.sum(hits) / max(1, sum(map(len, best))))
