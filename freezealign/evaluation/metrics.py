"""Ranks and intervals, as pure functions. Nothing here grows with queries times gallery."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

TILE_ELEMENTS = 2**21  # caches hold so few
# Equal vectors can differ so much in their scores, as tiles of other shapes are summed in another order.
ROUNDING = 4 * torch.finfo(torch.float32).eps


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
    rows = max(1, TILE_ELEMENTS // max(1, len(gallery)))
    # Filled in place: small tensors that outlive their tile would lie between the large ones and scatter the memory.
    ranks = torch.empty(len(queries), dtype=torch.long, device=queries.device)
    for some, owner, found in zip(queries.split(rows), query_owner.split(rows), ranks.split(rows)):
        scores, right = some @ gallery.T, owner[:, None] == gallery_owner
        best = scores.masked_fill(~right, float("-inf")).amax(1, keepdim=True) - ROUNDING
        found.copy_((~(scores < best) & ~right).sum(1))  # NaN is below nothing, so it counts against the model
    return ranks


@torch.no_grad()
def two_way_ranks(images: Tensor, texts: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
    """Return what :func:`positive_ranks` gives from text to image and from image to text, out of each score once.

    Args:
        images: (n, d), unit length.
        texts: (m, d), unit length.
        owners: (m,) the image of each text, in ascending order; every image has a text.

    Returns:
        (m,) integers in [0, n), and (n,) integers in [0, m).
    """
    n, m = len(images), len(texts)
    step = max(1, math.isqrt(TILE_ELEMENTS * n // m))
    ends = [0, *owners.bincount(minlength=n).cumsum(0)[step - 1 :: step].tolist()]
    ends = ends if ends[-1] == m else [*ends, m]
    # Blocks have whole images, so right scores stand in blocks of an image block and its own texts only.
    blocks = [(slice(i * step, (i + 1) * step), slice(*some)) for i, some in enumerate(itertools.pairwise(ends))]
    buffer = images.new_empty(2, max(end - start for start, end in itertools.pairwise(ends)) * min(step, n))
    text_best, image_best = texts.new_empty(m), images.new_empty(n)
    text_ranks, image_ranks = (torch.zeros(k, dtype=torch.long, device=images.device) for k in (m, n))

    def tile(image: slice, text: slice) -> tuple[Tensor, Tensor]:
        shape = (text.stop - text.start, len(images[image]))
        scores, lower = (memory[: math.prod(shape)].view(shape) for memory in buffer)
        return torch.mm(texts[text], images[image].T, out=scores), lower

    for image, text in blocks:
        scores, _ = tile(image, text)
        right = owners[text, None] == torch.arange(n, device=owners.device)[image]
        text_best[text] = scores[right] - ROUNDING
        image_best[image] = scores.masked_fill(~right, float("-inf")).amax(0) - ROUNDING
        # NaN is below nothing, so it counts against the model.
        text_ranks[text] += (~(scores < text_best[text, None]) & ~right).sum(1)
        image_ranks[image] += (~(scores < image_best[image]) & ~right).sum(0)
    for (_, text), (image, _) in itertools.permutations(blocks, 2):
        scores, lower = tile(image, text)
        # Numbers, not truth values: summing them is several times faster.
        text_ranks[text] += scores.shape[1] - torch.lt(scores, text_best[text, None], out=lower).sum(1).long()
        image_ranks[image] += scores.shape[0] - torch.lt(scores, image_best[image], out=lower).sum(0).long()
    return text_ranks, image_ranks


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
        resamples: R; tiles (r, K) have R rows in all.
        seed: Of the draw.
    """
    rng, n = np.random.default_rng(seed), int(counts.sum())
    tile = max(1, TILE_ELEMENTS // width)
    for start in range(0, resamples, tile):
        yield rng.multinomial(n, counts / n, size=min(tile, resamples - start))


def scored(name: str, hits: np.ndarray, chance: float) -> dict[str, float]:
    """Return the mean of ``hits`` (n,) as ``name``, with its interval ``_low`` … ``_high`` and ``_chance`` level."""
    low, high = bootstrap_interval(hits)
    return {name: float(np.mean(hits)), f"{name}_low": low, f"{name}_high": high, f"{name}_chance": chance}
