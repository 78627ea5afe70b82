"""Sliding windows: a picture cut into squares that an encoder sees one by one, and their maps put together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class SlidingWindows:
    """How a picture is shown to an encoder for segmentation.

    Args:
        short_side: Pixels of the picture's shorter side after resizing.
        window: Pixels a side of a window; the encoder then sees it at its own size.
        stride: Pixels from one window to the next; the last one of a row or column ends with the picture.
        squash: Make the picture a square instead of keeping its proportions.

    Raises:
        ValueError: If the windows leave gaps or do not fit.
    """

    short_side: int = 336
    window: int = 224
    stride: int = 112
    squash: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.window <= self.short_side:
            raise ValueError(
                f"windows need stride ≤ window ≤ short_side, got {self.stride}, {self.window} and {self.short_side}."
            )

    def __str__(self) -> str:
        size = f"{self.short_side} x {self.short_side}" if self.squash else f"shorter side {self.short_side}"
        return f"{size} px, windows of {self.window} px every {self.stride} px"

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height to which a picture is resized."""
        if self.squash:
            return self.short_side, self.short_side
        scale = self.short_side / min(width, height)
        return max(self.short_side, round(width * scale)), max(self.short_side, round(height * scale))

    def corners(self, width: int, height: int) -> list[tuple[int, int]]:
        """Return the left and top of every window on a picture already resized, row by row."""
        lefts, tops = ([*range(0, side - self.window, self.stride), side - self.window] for side in (width, height))
        return [(left, top) for top in tops for left in lefts]

    def cut(self, image: Image.Image, keep: float = 1.0) -> list[Image.Image]:
        """Return the windows of a picture.

        Args:
            image: RGB, of any size.
            keep: The share of a picture's side that the encoder's own preprocessing keeps when it cuts out the centre.
                Each window is given as much more of the picture around it, so that what is kept is the window; beyond
                the picture's edge its outermost pixels are repeated.
        """
        width, height = self.resized_size(*image.size)
        margin = round((self.window / keep - self.window) / 2)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        padded = Image.fromarray(np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
        side = self.window + 2 * margin
        return [padded.crop((left, top, left + side, top + side)) for left, top in self.corners(width, height)]

    def merge(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Return one map (C, H, W) of a picture out of the maps (C, rows, columns) of its windows.

        Each is up-sampled to its window, overlaps are averaged, and the whole is up-sampled to the picture; bilinear.

        Args:
            maps: One map a window, in the order of :meth:`cut`.
            size: Width and height of the picture.
        """
        width, height = self.resized_size(*size)
        total = maps[0].new_zeros(len(maps[0]), height, width)
        count = maps[0].new_zeros(height, width)
        for values, (left, top) in zip(maps, self.corners(width, height)):
            rows, columns = slice(top, top + self.window), slice(left, left + self.window)
            total[:, rows, columns] += _upsample(values, (self.window, self.window))
            count[rows, columns] += 1
        return _upsample(total / count, (size[1], size[0]))


def _upsample(values: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(values[None], size=size, mode="bilinear", align_corners=False)[0]


def center_crop_share(model: Any) -> float:
    """Return the share of a picture's side that a model's image encoder looks at; all of it where it does not say."""
    encoder = getattr(model, "encoders", {}).get("image")
    return float(encoder.encoder.center_crop_share) if encoder is not None else 1.0


def cell_map(classes: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the similarities (C, rows, columns) of class vectors (C, d) with patches (rows · columns, d)."""
    return (classes @ patches.to(classes).T).view(len(classes), *grid)
