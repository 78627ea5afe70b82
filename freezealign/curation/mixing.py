"""Mixing weights: how often to draw from each of several data sets."""

from __future__ import annotations

import math
from collections.abc import Mapping


def mixing_weights(sizes: Mapping[str, int], temperature: float = 1.0) -> dict[str, float]:
    """Return what ``fit(stores, weights=…)`` takes: how often a pair of each set is drawn in an epoch, at most once.

    A set of n pairs is drawn from in proportion to n^(1/temperature): 1 keeps the sizes, infinity draws from each set
    equally often (temperature sampling, as usual in multilingual training).

    Raises:
        ValueError: If a set is empty, or the temperature is below 1.
    """
    if not temperature >= 1 or min(sizes.values(), default=0) < 1:
        raise ValueError(f"sets hold pairs and the temperature is at least 1, got {dict(sizes)} and {temperature}.")
    smallest = min(sizes.values())
    return {name: math.pow(size / smallest, 1 / temperature - 1) for name, size in sizes.items()}
