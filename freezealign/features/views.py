"""Augmented views of an image, kept as further rows of its item."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from freezealign.data.pairs import Pair

if TYPE_CHECKING:
    from freezealign.modules import FrozenEncoder

SMALLEST_CROP = 0.5
"""Share of the area that a random crop keeps at least."""


def augmented(pair: Pair, encoders: Mapping[str, FrozenEncoder], views: int, position: int) -> Pair:
    """Return the pair with ``views`` rows for each of its images: the image itself and augmented ones.

    What is drawn depends on the position in the data alone.
    """
    if views == 1:
        return pair
    rng = np.random.default_rng(position)
    items = dict(pair.items)
    for key, images in items.items():
        if encoders[key].modality == "image":
            items[key] = [view for image in images for view in _views(image, views, rng)]
    return Pair(items, pair.id)


def _views(image: Image.Image, views: int, rng: np.random.Generator) -> list[Image.Image]:
    return [image, *(random_view(image, rng) for _ in range(views - 1))]


def random_view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a crop of the same aspect ratio, half of the area or more, mirrored half of the time."""
    side = np.sqrt(rng.uniform(SMALLEST_CROP, 1))
    width, height = max(1, round(image.width * side)), max(1, round(image.height * side))
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    crop = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop
