"""Ranks and intervals, as pure functions. Nothing here grows with queries times gallery."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

TILE_ELEMENTS = 2**21  # caches hold so few
BLOCK = 2**15  # entries of a gallery


def positive_ranks(queries: Tensor, gallery: Tensor, query_owner: Tensor, gallery_owner: Tensor) -> Tensor:
    """Return for each query how many wrong gallery items score at least as high as its best right one.

    0 means that a right one comes first. A tie counts against the model, so that a constant embedding ranks last.

    Args:
        queries: (Q, d), unit length.
        gallery: (G, d), unit length.
        query_owner: (Q,) which item a query belongs to.
        gallery_owner: (G,) which item a gallery entry belongs to; entries with the query's owner are right.

    Returns:
        (Q,) integers in [0, G).
    """
    rows = max(1, TILE_ELEMENTS // max(1, min(len(gallery), BLOCK)))
    # Filled in place: small tensors that outlive their tile would lie between the large ones and scatter the memory.
    ranks = torch.empty(len(queries), dtype=torch.long, device=queries.device)
    for some, owner, found in zip(queries.split(rows), query_owner.split(rows), ranks.split(rows)):
        found.copy_(_tile_ranks(some, owner[:, None], gallery, gallery_owner))
    return ranks


def _tile_ranks(queries: Tensor, query_owner: Tensor, gallery: Tensor, gallery_owner: Tensor) -> Tensor:
    """Return the ranks of few queries, whose owners are (q, 1), against one block of the gallery at a time."""
    with_right, without = [], []
    for block, owner in zip(gallery.split(BLOCK), gallery_owner.split(BLOCK)):
        right = owner == query_owner
        if right.any():  # in few blocks, as captions stand in the order of their images
            with_right.append((queries @ block.T, right))
        else:
            without.append(block)
    best = queries.new_full((len(queries), 1), float("-inf"))
    for scores, right in with_right:
        best = best.maximum(scores.masked_fill(~right, float("-inf")).amax(1, keepdim=True))
    # NaN is below nothing, so it counts against the model.
    ranks = [(~(scores < best) & ~right).sum(1) for scores, right in with_right]
    ranks += [(~(queries @ block.T < best)).sum(1) for block in without]
    return torch.stack(ranks).sum(0)


def nearest(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return for each query (Q, d) the index (Q,) of the gallery entry (G, d) with the highest score."""
    tile = max(1, TILE_ELEMENTS // max(1, len(gallery)))
    return torch.cat([(some @ gallery.T).argmax(1) for some in queries.split(tile)])


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of ``values`` (n,), drawn over items.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    # How often each kind of value is drawn is all that counts: half a million hits and misses are two numbers.
    kinds, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    sums = [drawn @ kinds for drawn in resampled_counts(counts, len(kinds), resamples, seed)]
    low, high = np.quantile(np.concatenate(sums) / len(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_counts(counts: np.ndarray, width: int, resamples: int = 1000, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield how often each kind of item occurs when as many as there are are drawn with replacement.

    Args:
        counts: (K,) how many items of each kind there are.
        width: Numbers that the caller keeps of a resample; it limits the rows of a tile.
        resamples: R.
        seed: Of the draw.

    Yields:
        Tiles (r, K), R rows in all.
    """
    rng, n = np.random.default_rng(seed), int(counts.sum())
    tile = max(1, TILE_ELEMENTS // width)
    for start in range(0, resamples, tile):
        yield rng.multinomial(n, counts / n, size=min(tile, resamples - start))


def scored(name: str, hits: np.ndarray, chance: float) -> dict[str, float]:
    """Return the mean of ``hits`` (n,) as ``name``, with its interval ``_low`` … ``_high`` and ``_chance`` level."""
    low, high = bootstrap_interval(hits)
    return {name: float(np.mean(hits)), f"{name}_low": low, f"{name}_high": high, f"{name}_chance": chance}
