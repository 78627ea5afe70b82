"""Test sets as folders and tables: a folder of images for each class, Pascal VOC's layout, columns with masks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from freezealign.data.sources.folder import class_folders
from freezealign.evaluation.testsets.base import (
    ClassifiedImages,
    MaskedImages,
    check_names,
    find_lines,
    left_out,
    read_lines,
)
from freezealign.inputs import InputError

NAMES = "classnames.txt"
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)


def read_class_folders(root: str | Path) -> ClassifiedImages:
    """Return the images below the sub-folders of a folder, each of which is a class.

    Args:
        root: The folder. Its sub-folders in the order of their names are the classes, called by these names with
            spaces for ``_``, or by the lines of ``classnames.txt`` if there is one.

    Raises:
        FileNotFoundError: If there are no sub-folders, or there is no image in one.
        ValueError: If ``classnames.txt`` has more or fewer lines than there are sub-folders, or a blank one.
    """
    found = class_folders(root)
    lines = find_lines(path := Path(root) / NAMES)
    names = [name.replace("_", " ") for name in found] if lines is None else check_names(path, lines)
    if len(names) != len(found):
        raise ValueError(f"{path} has {len(names)} lines, but there are {len(found)} folders; name each.")
    images = [picture for pictures in found.values() for picture in pictures]
    labels = [label for label, pictures in enumerate(found.values()) for _ in pictures]
    return ClassifiedImages(images, labels, names)


def read_voc(root: str | Path, split: str = "val", class_names: Sequence[str] | None = None) -> MaskedImages:
    """Return images with masks, in the layout of Pascal VOC; other data sets have it too, such as Pascal Context.

    What lacks its image or its mask is left out, and listed in ``skipped``.

    Args:
        root: The folder with ``JPEGImages/*.jpg``, ``SegmentationClass/*.png``, and ``ImageSets/Segmentation/*.txt``,
            which lists the images of a split. A mask is a picture with a palette, or a grey one: 0 is background, i is
            class number i from 1, 255 does not count.
        split: The name of the list.
        class_names: The names of the classes without background; by default the lines of ``ROOT/classnames.txt`` if
            there is one, and VOC's 20 otherwise.

    Raises:
        FileNotFoundError: If the list is missing.
        InputError: If no image with its mask is there.
        ValueError: If the list or ``classnames.txt`` is empty, or that has a blank line.
    """
    root = Path(root)
    lists = root / "ImageSets/Segmentation"
    found = sorted(path.stem for path in lists.glob("*.txt"))
    remedy = f"it lists the images of the split. There are lists for {found}."
    stems = [line for line in read_lines(lists / f"{split}.txt", remedy) if line]
    if not stems:
        raise ValueError(f"{lists / f'{split}.txt'} is empty; write the name of an image a line, without suffix.")
    files = [(root / "JPEGImages" / f"{stem}.jpg", root / "SegmentationClass" / f"{stem}.png") for stem in stems]
    reasons = {
        index: f"'{path}' is missing; add it, or take it off the list."
        for index, pair in enumerate(files)
        for path in pair
        if not path.is_file()
    }
    skipped = left_out(reasons, len(files))
    images, masks = zip(*(pair for index, pair in enumerate(files) if index not in reasons))
    if class_names is None:
        lines = find_lines(root / NAMES)
        class_names = VOC_CLASSES if lines is None else check_names(root / NAMES, lines)
    return MaskedImages(images, masks, list(class_names), skipped=skipped)


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
    alone = [dataset.select_columns([column]) for column in (image, mask)]  # because a row decodes all that it holds
    images, masks = ([partial(_read_cell, some, row) for row in range(len(some))] for some in alone)
    return MaskedImages(images, masks, list(class_names))


def _read_cell(dataset: Any, row: int) -> Any:
    ((column, content),) = dataset[row].items()
    if content is None:
        raise InputError(f"row {row} has no '{column}'; leave it out.")
    return content
