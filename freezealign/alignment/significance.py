"""How much a measured alignment means: its null, its calibrated value and its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from freezealign.alignment.measure import Indices, Measure
from freezealign.alignment.vectors import balanced

PERMUTATIONS, RESAMPLES = 200, 200
LEVEL = 0.95
NONE = (np.nan, np.nan)
ROUNDING = 1e-6
"""Of sums in float32: shuffles this close to the true order reach it."""


@dataclass(frozen=True)
class AlignmentScore:
    """A measure of two spaces, with what is needed to read it.

    Args:
        metric: Name of the measure.
        value: The measure over all ``n`` items. Most measures depend on n: compare only scores of equal n.
        n: Items.
        low: Lower end of the 95% interval, ``high`` the upper one; NaN where there are too few items to halve, or
            the measure is not defined on a half of them.
        high: See ``low``.
        chance: Mean of the measure when the items of one space are shuffled.
        threshold: What 95% of the shuffles stay below.
        p_value: Share of shuffles, the true order counted in, that reach the measure.
        calibrated: How far the measure is above the threshold, as a share of the way to 1; 0 if it is not above.
            Source: arXiv 2602.14486.
        sampled: Items that chance, threshold, p-value, calibration and interval were estimated on; the interval is
            scaled to n.
    """

    metric: str
    value: float
    n: int
    low: float
    high: float
    chance: float
    threshold: float
    p_value: float
    calibrated: float
    sampled: int

    def __str__(self) -> str:
        interval = "" if np.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        sampled = "" if self.sampled == self.n else f" at n = {self.sampled:,}"
        chance = round(self.chance, 3) + 0.0  # never -0.000
        return (
            f"{self.metric} {self.value:.3f}{interval}, n = {self.n:,}; "
            f"chance {chance:.3f}, calibrated {self.calibrated:.3f}, p = {self.p_value:.3f}{sampled}"
        )


def score_pairs(
    measure: Measure,
    values: Sequence[float],
    n: int,
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    pairs: Indices,
    *,
    permutations: int = PERMUTATIONS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    show_progress_bar: bool = True,
) -> list[AlignmentScore]:
    """Return the scores of pairs of spaces from a sample of their items; each space is described once a resample.

    The null comes from shuffling the items of y. The interval comes from random halves drawn without replacement, whose
    spread about their mean is that of the whole to first order: a bootstrap would draw items twice, and these are each
    other's nearest neighbours. Source: Politis, Romano & Wolf 1999, "Subsampling"; Shao & Tu 1995, chapter 2 (the
    delete-d jackknife with d = n / 2).

    Args:
        measure: The measure.
        values: Of each pair over all ``n`` items.
        n: See ``values``.
        xs: (m, d) sampled vectors of each space, ``ys`` likewise, of the same items.
        ys: See ``xs``.
        pairs: Which of ``xs`` with which of ``ys``.
        permutations: Shuffles.
        resamples: Halves.
        seed: Of both.
        show_progress_bar: Show progress if it takes longer than a second.

    Raises:
        ValueError: If there is no draw, or the measure is not defined on the sample.
    """
    for name, number in (("permutations", permutations), ("resamples", resamples)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    m, generator = len(xs[0]), torch.Generator().manual_seed(seed)
    halved = resamples if m // 2 >= measure.least else 0
    bar = tqdm(total=permutations + halved, desc=measure.name, delay=1, disable=not show_progress_bar)
    kernels = [[measure.kernel(balanced(space).float()) for space in side] for side in (xs, ys)]
    first, second = ([measure.describe(kernel) for kernel in side] for side in kernels)
    on_sample = [measure.checked(measure.compare(first[i], second[j])) for i, j in pairs]

    def draw(count: int, sides: Callable[[Tensor], Sequence[Sequence[Tensor]]]) -> np.ndarray:
        """Return the measure of each pair (rows) in ``count`` draws (columns): of descriptions in a random order."""
        drawn = np.full((len(pairs), max(count, 1)), np.nan)
        for number in range(count):
            one, other = sides(torch.randperm(m, generator=generator))
            drawn[:, number] = [measure.compare(one[i], other[j]) for i, j in pairs]
            bar.update()
        return drawn

    null = draw(permutations, lambda order: (first, [measure.select(each, order) for each in second]))
    halves = draw(
        halved, lambda order: [[measure.describe(measure.select(k, order[: m // 2])) for k in side] for side in kernels]
    )
    bar.close()
    return [_score(measure.name, value, n, m, *found) for value, *found in zip(values, on_sample, null, halves)]


def _score(
    name: str, value: float, n: int, m: int, on_sample: float, null: np.ndarray, halves: np.ndarray
) -> AlignmentScore:
    threshold = float(np.quantile(null, LEVEL))
    saturated = np.ptp(halves) < ROUNDING < abs(on_sample - halves[0])  # halves have no more items than dimensions
    tail = (1 - LEVEL) / 2
    low, high = (np.quantile(halves - halves.mean(), [tail, 1 - tail]) * np.sqrt(m / n)) if not saturated else NONE
    return AlignmentScore(
        metric=name,
        value=value,
        n=n,
        low=float(value + low),
        high=float(value + high),
        chance=float(null.mean()),
        threshold=threshold,
        p_value=float((1 + (null >= on_sample - ROUNDING).sum()) / (1 + len(null))),
        calibrated=float(np.clip((on_sample - threshold) / (1 - threshold), 0, 1)) if threshold < 1 - ROUNDING else 0.0,
        sampled=m,
    )
