"""Augmented views of an item, kept as further rows of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from freezealign.data.pairs import Pair
from freezealign.encoders import FrozenEncoder
from freezealign.modality import modality_of


def augmented(pair: Pair, position: int, encoders: Mapping[str, FrozenEncoder], views: int) -> Pair:
    """Return the pair with ``views`` rows for each item that can be augmented: itself and random views of it.

    What is drawn depends on the position in the data alone.
    """
    if views == 1:
        return pair
    rng = np.random.default_rng(position)
    items = dict(pair.items)
    for key, originals in items.items():
        if augment := modality_of(encoders[key].modality).augment:
            items[key] = [
                view for item in originals for view in (item, *(augment(item, rng) for _ in range(views - 1)))
            ]
    return Pair(items, pair.id)
