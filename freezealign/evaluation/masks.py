"""Masks, in every form in which one is passed: which class each pixel of a picture belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from freezealign.images import formats
from freezealign.inputs import InputError
from freezealign.modality import read_item


def read_mask(item: Any, name: str = "the mask") -> np.ndarray:
    """Return a mask (H, W) of int64: the indices of a picture with a palette, not its colours.

    Args:
        item: Integers (H, W), a PIL image with one band, a path of one, or a function that returns any of these.
        name: For error messages.

    Raises:
        InputError: If it cannot be read, is not two-dimensional or has no integers.
    """
    try:
        content = item() if callable(item) else item
        if isinstance(content, (str, Path)):
            with Image.open(content, formats=formats()) as picture:
                picture.load()
                content = picture
        mask = np.asarray(content)
    except Exception as error:  # a damaged file makes decoders raise whatever they happen to trip over
        raise InputError(f"cannot read {name}: {str(error).rstrip('.')}.") from error
    if mask.ndim != 2 or mask.dtype.kind not in "iub":
        mode = f" of mode '{content.mode}'" if isinstance(content, Image.Image) else ""
        raise InputError(
            f"{name} holds {mask.dtype} of shape {mask.shape}{mode}; expected one class index a pixel: integers "
            "(H, W), a picture with a palette, or a grey one. A mask of colours has to be mapped to indices first."
        )
    return mask.astype(np.int64)


def read_masked(image: Any, mask: Any, name: str = "the mask") -> tuple[Image.Image, np.ndarray]:
    """Return a picture as RGB and its mask (H, W); an ``InputError`` says what cannot be read or has another size."""
    picture, found = read_item(image, "image"), read_mask(mask, name)
    shape = picture.height, picture.width
    if found.shape != shape:
        raise InputError(f"{name} is {found.shape}, its image {shape} (height, width); each pixel needs a class.")
    return picture, found
