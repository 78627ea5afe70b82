"""Spearman's rank correlation over runs, with its interval, also among the runs of a group only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of a measure with an outcome, over runs.

    The value is NaN where one of both does not vary. The 95% interval, from a percentile bootstrap over ``n`` runs,
    cannot leave a perfect correlation, and says nothing about spaces that are made in another way.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def includes_zero(self) -> bool:
        """Whether the interval does."""
        return self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def rank_correlation(
    x: Sequence[float], y: Sequence[float], groups: Sequence[Any] | None = None, resamples: int = 1000, seed: int = 0
) -> Correlation:
    """Return Spearman's rank correlation with its percentile bootstrap interval over runs.

    With ``groups``, what group each run is in, runs are ranked, and resampled, within their group only, so that what
    differs between groups counts for nothing.
    """
    labels = np.zeros(len(x)) if groups is None else np.asarray(groups)
    values = np.array([x, y], dtype=np.float64)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(group, (resamples, len(group))) for group in members]
    value = float(_correlations(values, [group[None] for group in members])[0])
    spread = _correlations(values, drawn)
    spread = spread[np.isfinite(spread)]
    low, high = np.quantile(spread, [0.025, 0.975]).tolist() if len(spread) else (np.nan, np.nan)
    return Correlation(value, low, high, len(x))


def _correlations(values: np.ndarray, drawn: Sequence[np.ndarray]) -> np.ndarray:
    """Return the correlation (B,) of values (2, n) ranked within groups, each group's members drawn as (B, size)."""
    from scipy.stats import rankdata

    ranks = [rankdata(values[:, group], axis=2) - (group.shape[1] + 1) / 2 for group in drawn]
    first, second = np.concatenate(ranks, axis=2)
    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    return np.divide((first * second).sum(1), scale, out=np.full(len(scale), np.nan), where=scale > 0)
