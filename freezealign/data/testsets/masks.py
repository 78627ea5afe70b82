"""Masks: which class each pixel of an image belongs to, read when asked for and checked against the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from freezealign.data.testsets.base import IGNORED


@dataclass(frozen=True)
class Mask:
    """The mask of an image; calling it reads both.

    Args:
        name: For error messages.
        read: Returns the mask as a picture or as integers (H, W).
        image: The image, in any form ``encode_image`` takes.
        classes: The number of classes, without background.
    """

    name: str
    read: Callable[[], Any]
    image: Any
    classes: int

    def __call__(self) -> np.ndarray:
        """Return (H, W) int64: 0 for background, i for the class that comes i-th, 255 for what does not count.

        Raises:
            InputError: If the mask cannot be read, is not as large as its image, or holds anything else.
        """
        from freezealign.images import read_image
        from freezealign.inputs import InputError

        try:
            content = self.read()
        except Exception as error:  # a damaged file makes decoders raise whatever they happen to trip over
            raise InputError(f"cannot read {self.name}: {str(error).rstrip('.')}.") from error
        values = _integers(content, self.name)
        width, height = read_image(self.image).size
        if values.shape != (height, width):
            raise InputError(
                f"{self.name} is {values.shape[1]} × {values.shape[0]} pixels, its image {width} × {height}; "
                "each pixel of the image needs a class."
            )
        unknown = values[(values < 0) | (values > self.classes) & (values != IGNORED)]
        if len(unknown):
            raise InputError(
                f"{self.name} holds {unknown[0]}, but there are {self.classes} classes, from 1; 0 is background, "
                f"{IGNORED} does not count. Name every class."
            )
        return values


def _integers(content: Any, name: str) -> np.ndarray:
    """Return a mask's values (H, W); those of a picture with a palette are the indices, not the colours."""
    from freezealign.inputs import InputError

    if isinstance(content, Image.Image) and not content.mode.startswith(("P", "L", "I")):
        raise InputError(f"{name} has mode '{content.mode}'; a mask is a picture with a palette, or a grey one.")
    values = np.asarray(content)
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise InputError(
            f"{name} is no mask: expected a picture or integers (H, W), got {type(content).__name__} of shape "
            f"{values.shape} and dtype {values.dtype}."
        )
    return values.astype(np.int64)
