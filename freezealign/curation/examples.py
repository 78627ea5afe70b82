"""Examples of concepts: labelled pictures in folders or a data set."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from freezealign.images import IMAGE_SUFFIXES


def labelled_pictures(folder: str | PathLike[str]) -> dict[str, list[Path]]:
    """Return the pictures of each sub-folder under its name, sorted.

    Raises:
        ValueError: If no sub-folder holds a picture, or one holds none.
    """
    folders = sorted(path for path in Path(folder).glob("*") if path.is_dir())
    found = {
        path.name: sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES) for path in folders
    }
    empty = [name for name, pictures in found.items() if not pictures]
    if empty or not found:
        raise ValueError(f"{folder}: each concept needs a folder with pictures; {empty[:5] or 'there is none'}.")
    return found


def labelled_dataset(dataset: Any, image: str = "image", label: str = "label") -> dict[str, list[Any]]:
    """Return the images of a ``datasets`` data set, not decoded yet, under the names of their labels.

    Raises:
        ValueError: If a column is missing, or a row has no label.
    """
    from datasets import Image

    if missing := {image, label} - set(dataset.column_names):
        raise ValueError(f"the data set has no column {sorted(missing)}; its columns are {dataset.column_names}.")
    if isinstance(dataset.features[image], Image):
        dataset = dataset.cast_column(image, Image(decode=False))
    names = getattr(dataset.features[label], "names", None)
    found: dict[str, list[Any]] = {}
    for number, row in enumerate(dataset):
        if names is not None and row[label] not in range(len(names)):
            raise ValueError(
                f"row {number} of the data set has the label {row[label]}, which has no name; leave it out."
            )
        found.setdefault(str(row[label]) if names is None else names[row[label]], []).append(row[image])
    return found


def draw(items: Sequence[Any], shots: int | None, seed: int) -> list[Any]:
    """Return ``shots`` of the items in their order, drawn at random where there are more."""
    if shots is None or len(items) <= shots:
        return list(items)
    chosen = np.random.default_rng(seed).choice(len(items), shots, replace=False)
    return [items[index] for index in np.sort(chosen)]
