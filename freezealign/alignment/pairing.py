"""The search for encoders that belong together: the paper's first step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from freezealign.alignment.candidates import Candidate, CandidateLike, CandidateLoader, LeftOut, named, on_common_items
from freezealign.alignment.measure import FEW, Measure, MomentMeasure
from freezealign.alignment.ranking import PairRanking, RankedPair
from freezealign.alignment.registry import find_measure
from freezealign.alignment.significance import PERMUTATIONS, RESAMPLES, AlignmentScore, score_pairs
from freezealign.alignment.vectors import StoreVectors
from freezealign.encoders import FrozenEncoder

Encoders = Sequence[CandidateLike] | Mapping[str, CandidateLike]
Layer = tuple[int, int]
"""The number of a candidate, and of one of its layers."""


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
    strict: bool = False,
    show_progress_bar: bool = True,
) -> PairRanking:
    """Measure every vision encoder with every text encoder before anything is trained, and rank the pairs.

    Spaces that are alike before training are easily aligned. Each encoder reads the data once, and what a measure needs
    of one space alone is computed once for all its pairs.

    Args:
        vision: Names, :class:`~freezealign.FrozenEncoder` or feature stores; or a mapping from names of yours to these.
            A list or tuple among them is several encoders side by side, a :class:`~freezealign.JointEncoder`.
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
        strict: Raise at the first encoder that cannot be loaded or run, and at the first item that cannot be read or
            encoded, instead of ranking without it and listing it in ``left_out``.
        show_progress_bar: Show progress if it takes longer than a second.

    Raises:
        ValueError: If one side has no encoder, a metric is unknown, the data is an iterator, or fewer items than the
            measures need are common to all.
        Exception: What the first encoder of a side failed with, if all of that side fail.
    """
    measures = _find_measures([metrics] if isinstance(metrics, (str, Measure)) else metrics, max_items)
    sides = named(vision, "image"), named(text, "text")
    modalities = _modalities(sides)
    folder = None if path is None else Path(path)
    loader = CandidateLoader(data, modalities, folder, layers, batch_size, show_progress_bar, strict)
    xs, ys = map(loader.load_side, sides, modalities)
    both = on_common_items([*xs, *ys])
    xs, ys, n = both[: len(xs)], both[len(xs) :], len(both[0].store)
    if n < (least := max(measure.least for measure in measures)):
        raise ValueError(f"at least {least} items are needed, got {n} that every encoder has.")
    drawn = np.random.default_rng(seed).permutation(n)
    sample, most = np.sort(drawn[: min(FEW, max_items)]), np.sort(drawn[:max_items])
    chosen = _best_layers(xs, ys, measures[0], sample)
    options: Any = {"permutations": permutations, "resamples": resamples, "seed": seed}
    options["show_progress_bar"] = show_progress_bar
    columns = [_score(measure, xs, ys, chosen, most, sample, **options) for measure in measures]
    ranked = [
        RankedPair(xs[x].name, ys[y].name, (i + 1, j + 1) if layers == "all" else None, {s.metric: s for s in scores})
        for ((x, i), (y, j)), scores in zip(chosen, zip(*columns))
    ]
    bad = [LeftOut(c.name, c.modality, e.index, e.reason) for c in both for e in c.store.skipped]
    costs = [{candidate.name: candidate.cost for candidate in side} for side in (xs, ys)]
    return PairRanking(ranked, costs[0], costs[1], [*loader.left_out, *bad])


def _find_measures(metrics: Sequence[str | Measure], max_items: int) -> list[Measure]:
    measures = [find_measure(metric) for metric in metrics]
    names = [measure.name for measure in measures]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"name at least one metric, and each only once, got {names}.")
    least = max(measure.least for measure in measures)
    if max_items < least:
        raise ValueError(f"max_items must be at least {least} for {names}, got {max_items}.")
    return measures


def _modalities(sides: Sequence[Mapping[str, CandidateLike]]) -> tuple[str, str]:
    """Return the modality of each of two sides: that of its first encoder that states one, else image and text."""
    found = []
    for side, default in zip(sides, ("image", "text")):
        encoders = (one for many in side.values() for one in (many if isinstance(many, (list, tuple)) else [many]))
        found.append(next((one.modality for one in encoders if isinstance(one, FrozenEncoder)), default))
    if found[0] == found[1]:
        raise ValueError(f"both sides are encoders of {found[0]}: name encoders of two modalities.")
    return found[0], found[1]


def _best_layers(
    xs: Sequence[Candidate], ys: Sequence[Candidate], measure: Measure, sample: np.ndarray
) -> list[tuple[Layer, Layer]]:
    """Return for every pair of candidates the two layers that ``measure`` finds most alike on the sample."""
    if all(len(candidate.widths) == 1 for candidate in (*xs, *ys)):
        return [((i, 0), (j, 0)) for i in range(len(xs)) for j in range(len(ys))]

    def described(candidate: Candidate) -> list[Tensor]:
        layers = range(len(candidate.widths))
        return [measure.describe(measure.kernel(candidate.vectors(sample, layer).all())) for layer in layers]

    others, best = [described(y) for y in ys], []
    for i, x in enumerate(xs):
        own = described(x)
        for j, other in enumerate(others):
            found = {(k, m): measure.compare(own[k], other[m]) for k in range(len(own)) for m in range(len(other))}
            first, second = max(found, key=lambda places: np.nan_to_num(found[places], nan=-1))
            best.append(((i, first), (j, second)))
    return best


def _score(
    measure: Measure,
    xs: Sequence[Candidate],
    ys: Sequence[Candidate],
    chosen: Sequence[tuple[Layer, Layer]],
    most: np.ndarray,
    sample: np.ndarray,
    **options: Any,
) -> list[AlignmentScore]:
    """Return the score of each pair of layers; what concerns one layer is computed once.

    Measures that compare every item with every other work on the items ``most``, those that follow from sums on all.
    """
    items = np.arange(len(xs[0].store)) if isinstance(measure, MomentMeasure) else most
    first, second = used = [sorted(set(side)) for side in zip(*chosen)]
    pairs = [(first.index(x), second.index(y)) for x, y in chosen]

    def vectors(rows: np.ndarray) -> list[list[StoreVectors]]:
        return [[side[number].vectors(rows, k) for number, k in layers] for side, layers in zip((xs, ys), used)]

    whole, few = vectors(items), [[space.all() for space in side] for side in vectors(sample)]
    values = measure.measure_pairs(whole[0], whole[1], pairs)
    return score_pairs(measure, values, len(items), few[0], few[1], pairs, **options)
