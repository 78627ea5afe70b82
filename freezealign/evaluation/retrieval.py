"""Image–text retrieval, in one language or many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from freezealign.evaluation.captioned import CaptionedImagesEvaluator, Captions
from freezealign.evaluation.metrics import scored, two_way_ranks


class RetrievalEvaluator(CaptionedImagesEvaluator):
    """R@k and mean reciprocal rank (MRR), from text to image (T2I) and from image to text (I2T).

    T2I: is the one right image among the k nearest? I2T: is any of the image's captions among the k nearest?

    Args:
        images: The images, in any form ``encode_image`` takes.
        captions: For each image a caption, several, or ``None`` where there is none (the image is then left out); or
            such a list for each language. Languages are evaluated apart.
        name: Put in front of every metric.
        ks: Ranks to report.
        batch_size: Items a forward pass.
        show_progress_bar: Show progress if it takes longer than a second.
    """

    protocol = "cosine; a tie counts against the model; I2T counts any caption of the image"

    def __init__(
        self,
        images: Any,
        captions: Captions | Mapping[str, Captions],
        name: str = "",
        ks: Sequence[int] = (1, 5, 10),
        batch_size: int = 32,
        show_progress_bar: bool = True,
    ) -> None:
        super().__init__(images, captions, name, batch_size, show_progress_bar)
        self.ks = tuple(ks)
        self.columns = [f"{direction}_R@{k}" for direction in ("t2i", "i2t") for k in self.ks]

    def scores(self, images: Tensor, texts: Tensor, owners: Tensor) -> dict[str, float]:
        """Return ``t2i_R@k``, ``i2t_R@k``, MRR, the median rank, and n; arguments as the base has them."""
        shown, owners, counts = owners.unique(return_inverse=True, return_counts=True)
        images = images if len(shown) == len(images) else images[shown]
        t2i, i2t = two_way_ranks(images, texts, owners)
        directions = {
            "t2i": (t2i, len(images), np.ones(1)),
            "i2t": (i2t, len(texts), counts.cpu().numpy()),
        }
        scores: dict[str, float] = {"n_images": len(images), "n_texts": len(texts)}
        for direction, (ranks, candidates, positives) in directions.items():
            positions = ranks.cpu().numpy()
            for k in self.ks:
                hits = positions < k
                scores |= scored(f"{direction}_R@{k}", hits, chance_recall(k, candidates, positives))
            scores |= scored(f"{direction}_MRR", 1 / (positions + 1), chance_reciprocal_rank(candidates, positives))
            scores[f"{direction}_median_rank"] = float(np.median(positions)) + 1
        return scores


def chance_recall(k: int, candidates: int, positives: np.ndarray) -> float:
    """Return R@k of a random order, as the mean over queries with ``positives`` (Q,) right ones each.

    One query misses with the hypergeometric probability that none of its right ones is among k drawn.
    """
    from scipy.stats import hypergeom

    kinds, counts = np.unique(positives, return_counts=True)  # queries are many, numbers of right ones are few
    return float(1 - np.average(hypergeom.pmf(0, candidates, kinds, min(k, candidates)), weights=counts))


def chance_reciprocal_rank(candidates: int, positives: np.ndarray) -> float:
    """Return the mean reciprocal rank of a random order; arguments as in :func:`chance_recall`."""
    from scipy.stats import nhypergeom

    kinds, counts = np.unique(positives, return_counts=True)
    wrong_before = np.arange(candidates)
    expected = [
        (nhypergeom.pmf(wrong_before, candidates, candidates - kind, 1) / (wrong_before + 1)).sum() for kind in kinds
    ]
    return float(np.average(expected, weights=counts))
