"""Images and masks in the columns of a ``datasets.Dataset``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from freezealign.evaluation.testsets.base import MaskedImages
from freezealign.inputs import InputError


def read_masks(dataset: Any, class_names: Sequence[str], image: str = "image", mask: str = "mask") -> MaskedImages:
    """Return the images and masks of a data set's columns; a row is decoded when it is called for.

    Args:
        dataset: A ``datasets.Dataset``.
        class_names: The names of the classes, without background.
        image: The column of images.
        mask: The column of masks: pictures with a palette or grey ones, or integers (H, W). 0 is background, i is
            class number i from 1, 255 does not count.

    Raises:
        ValueError: If a column is missing, or there are no rows.
    """
    for keyword, column in (("image", image), ("mask", mask)):
        if column not in dataset.column_names:
            raise ValueError(
                f"there is no column '{column}'; the columns are {list(dataset.column_names)}. "
                f"Say which one to use: {keyword}='…'."
            )
    return MaskedImages(_cells(dataset, image), _cells(dataset, mask), list(class_names))


def _cells(dataset: Any, column: str) -> list[partial[Any]]:
    alone = dataset.select_columns([column])  # because a row decodes all that it holds
    return [partial(_read_cell, alone, row, column) for row in range(len(dataset))]


def _read_cell(dataset: Any, row: int, column: str) -> Any:
    content = dataset[row][column]
    if content is None:
        raise InputError(f"row {row} has no '{column}'; leave it out.")
    return content
