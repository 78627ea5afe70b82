"""The search for encoders that belong together: the paper's first step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from freezealign.alignment.candidates import Candidate, CandidateLike, CandidateLoader, common_items, named
from freezealign.alignment.measure import FEW, Indices, Measure, MomentMeasure
from freezealign.alignment.ranking import PairRanking, RankedPair
from freezealign.alignment.registry import find_measure
from freezealign.alignment.significance import PERMUTATIONS, RESAMPLES, AlignmentScore, score_pairs
from freezealign.alignment.vectors import StoreVectors, check_space
from freezealign.data.sources import open_pairs
from freezealign.encoders import FrozenEncoder

Encoders = Sequence[CandidateLike] | Mapping[str, CandidateLike]


def rank_encoders(
    vision: Encoders,
    text: Encoders,
    data: str | Path | Iterable[Any] | None = None,
    metrics: str | Measure | Sequence[str | Measure] = ("cka", "mutual_knn"),
    layers: Literal["last", "all"] = "last",
    *,
    path: str | os.PathLike[str] | None = None,
    max_items: int = 10_000,
    batch_size: int = 32,
    permutations: int = PERMUTATIONS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    show_progress_bar: bool = True,
) -> PairRanking:
    """Measure every vision encoder with every text encoder before anything is trained, and rank the pairs.

    Spaces that are alike before training are easily aligned. Each encoder reads the data once, and what a measure needs
    of one space alone is computed once for all its pairs.

    Args:
        vision: Names, :class:`~freezealign.FrozenEncoder` or feature stores; or a mapping from names of yours to these.
        text: Likewise. Not only texts: any encoders of one other modality.
        data: Pairs, or a path, as ``fit`` takes them; read once for each encoder. None is needed for feature stores.
        metrics: Names in :data:`freezealign.alignment.METRICS`, or measures. The first decides the order.
        layers: ``all`` compares every layer of one encoder with every layer of the other, picks the two that the first
            metric finds most alike on a sample, and measures these. The choice is not part of the intervals.
        path: Folder to keep the features in, a store for each encoder; a later call finds them there.
        max_items: How many items, drawn at random, measures work on that compare every item with every other; those
            that follow from sums (CKA, CCA, Procrustes) read all.
        batch_size: Items a forward pass.
        permutations: Shuffles for the null.
        resamples: Halves for the interval.
        seed: Of the sample, the shuffles and the halves.
        show_progress_bar: Show progress if it takes longer than a second.

    Raises:
        ValueError: If one side has no encoder, a metric is unknown, the data is an iterator, or fewer items than the
            measures need are common to all.
    """
    measures = _find_measures([metrics] if isinstance(metrics, (str, Measure)) else metrics, max_items)
    sides = named(vision, "image"), named(text, "text")
    modalities = _modality(sides[0], "image"), _modality(sides[1], "text")
    if modalities[0] == modalities[1]:
        raise ValueError(f"both sides are encoders of {modalities[0]}: name encoders of two modalities.")
    if isinstance(data, (str, Path)):
        data = open_pairs(data)
    folder = None if path is None else Path(path)
    loader = CandidateLoader(data, modalities, folder, layers, batch_size, show_progress_bar)
    xs, ys = ([loader.load(*entry, kind) for entry in side.items()] for side, kind in zip(sides, modalities))
    search = _Search(xs, ys, max_items, np.random.default_rng(seed))
    search.check_size(max(measure.least for measure in measures))
    chosen = search.best_layers(measures[0])
    options = {"permutations": permutations, "resamples": resamples, "seed": seed}
    columns = [search.score(measure, chosen, show_progress_bar=show_progress_bar, **options) for measure in measures]
    ranked = [
        RankedPair(xs[x].name, ys[y].name, (i + 1, j + 1) if layers == "all" else None, {s.metric: s for s in scores})
        for ((x, i), (y, j)), scores in zip(chosen, zip(*columns))
    ]
    return PairRanking(ranked, *({candidate.name: candidate.cost for candidate in side} for side in (xs, ys)))


def _find_measures(metrics: Sequence[str | Measure], max_items: int) -> list[Measure]:
    measures = [find_measure(metric) for metric in metrics]
    names = [measure.name for measure in measures]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"name at least one metric, and each only once, got {names}.")
    least = max(measure.least for measure in measures)
    if max_items < least:
        raise ValueError(f"max_items must be at least {least} for {names}, got {max_items}.")
    return measures


Layer = tuple[int, int]
"""The number of a candidate, and of one of its layers."""


class _Side:
    """The candidates of one side, and where in their features the items lie that all candidates of both have."""

    def __init__(self, candidates: Sequence[Candidate], places: Sequence[np.ndarray]) -> None:
        self.candidates, self.places = candidates, places

    def vectors(self, layer: Layer, items: np.ndarray) -> StoreVectors:
        """Return the vectors of some of the common items at one layer."""
        return self.candidates[layer[0]].vectors(self.places[layer[0]][items], layer[1])

    def describe_layers(self, candidate: int, measure: Measure, items: np.ndarray) -> list[Tensor]:
        """Return what a measure sees of every layer of a candidate."""
        layers = [(candidate, layer) for layer in range(self.candidates[candidate].layers)]
        return [measure.describe(measure.kernel(self.vectors(layer, items).all())) for layer in layers]


class _Search:
    """The candidates on the items that all of them have.

    Args:
        xs: One side.
        ys: The other.
        max_items: See :func:`rank_encoders`.
        rng: Draws the sample.
    """

    def __init__(
        self, xs: Sequence[Candidate], ys: Sequence[Candidate], max_items: int, rng: np.random.Generator
    ) -> None:
        places = common_items([*xs, *ys])
        self.sides = _Side(xs, places[: len(xs)]), _Side(ys, places[len(xs) :])
        n = len(places[0])
        drawn = rng.permutation(n)
        self.everything, self.most = np.arange(n), np.sort(drawn[:max_items])
        self.sample = np.sort(drawn[: min(FEW, max_items)])

    def check_size(self, least: int) -> None:
        """Raise a ``ValueError`` if there are fewer items than ``least``."""
        if len(self.everything) < least:
            raise ValueError(f"at least {least} items are needed, got {len(self.everything)} that every encoder has.")

    def best_layers(self, measure: Measure) -> list[tuple[Layer, Layer]]:
        """Return for every pair of candidates the two layers that ``measure`` finds most alike on the sample."""
        first, second = self.sides
        xs, ys = range(len(first.candidates)), range(len(second.candidates))
        if all(candidate.layers == 1 for side in self.sides for candidate in side.candidates):
            return [((i, 0), (j, 0)) for i in xs for j in ys]
        described = [second.describe_layers(j, measure, self.sample) for j in ys]
        best = []
        for i in xs:
            own = first.describe_layers(i, measure, self.sample)
            for j, others in enumerate(described):
                found = measure.compare_all(own, others)
                k, other = np.unravel_index(int(found.nan_to_num(-1).argmax()), found.shape)
                best.append(((i, int(k)), (j, int(other))))
        return best

    def score(self, measure: Measure, chosen: Sequence[tuple[Layer, Layer]], **options: Any) -> list[AlignmentScore]:
        """Return the score of each pair of layers; what concerns one layer is computed once."""
        first, second = layers = [sorted(set(side)) for side in zip(*chosen)]
        pairs: Indices = [(first.index(x), second.index(y)) for x, y in chosen]
        items = self.everything if isinstance(measure, MomentMeasure) else self.most
        xs, ys = ([side.vectors(layer, items) for layer in used] for side, used in zip(self.sides, layers))
        for vectors in (*xs, *ys):
            check_space(vectors, measure.least)
        values = measure.measure_pairs(xs, ys, pairs)
        few = [[side.vectors(layer, self.sample).all() for layer in used] for side, used in zip(self.sides, layers)]
        return score_pairs(measure, values, len(items), few[0], few[1], pairs, **options)


def _modality(encoders: Mapping[str, CandidateLike], default: str) -> str:
    """Return the modality of a side: that of the first encoder that states one."""
    return next((encoder.modality for encoder in encoders.values() if isinstance(encoder, FrozenEncoder)), default)
