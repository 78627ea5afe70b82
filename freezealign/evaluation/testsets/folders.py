"""Test sets in folders: one of images for each class, or Pascal VOC's with masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from freezealign.data.sources.folder import class_folders
from freezealign.evaluation.testsets.base import ClassifiedImages, MaskedImages
from freezealign.evaluation.testsets.lines import find_lines, read_lines

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
        ValueError: If ``classnames.txt`` has more or fewer lines than there are sub-folders.
    """
    found = class_folders(root)
    names = find_lines(Path(root) / NAMES)
    if names is None:
        names = [name.replace("_", " ") for name in found]
    if len(names) != len(found):
        raise ValueError(f"{Path(root) / NAMES} has {len(names)} lines, but there are {len(found)} folders; name each.")
    images = [picture for pictures in found.values() for picture in pictures]
    labels = [label for label, pictures in enumerate(found.values()) for _ in pictures]
    return ClassifiedImages(images, labels, names)


def read_voc(root: str | Path, split: str = "val", class_names: Sequence[str] | None = None) -> MaskedImages:
    """Return images with masks, in the layout of Pascal VOC; other data sets have it too, such as Pascal Context.

    Args:
        root: The folder with ``JPEGImages/*.jpg``, ``SegmentationClass/*.png``, and ``ImageSets/Segmentation/*.txt``,
            which lists the images of a split. A mask is a picture with a palette, or a grey one: 0 is background, i is
            class number i from 1, 255 does not count.
        split: The name of the list.
        class_names: The names of the classes without background; by default the lines of ``ROOT/classnames.txt`` if
            there is one, and VOC's 20 otherwise.

    Raises:
        FileNotFoundError: If the list, an image or a mask is missing.
        ValueError: If the list is empty.
    """
    root = Path(root)
    stems = _read_split(root, split)
    images = [root / "JPEGImages" / f"{stem}.jpg" for stem in stems]
    masks = [root / "SegmentationClass" / f"{stem}.png" for stem in stems]
    if missing := [path for path in (*images, *masks) if not path.is_file()]:
        raise FileNotFoundError(
            f"{root}: {len(missing)} images or masks of the split '{split}' are missing, the first is '{missing[0]}'; "
            "add them, or take them off the list."
        )
    names = find_lines(root / NAMES) if class_names is None else class_names
    return MaskedImages(images, masks, list(VOC_CLASSES if names is None else names))


def _read_split(root: Path, split: str) -> list[str]:
    """Return the names of a split's images, without their suffix."""
    lists = root / "ImageSets/Segmentation"
    found = sorted(path.stem for path in lists.glob("*.txt"))
    lines = read_lines(lists / f"{split}.txt", f"it lists the images of the split. There are lists for {found}.")
    stems = [line for line in lines if line]
    if not stems:
        raise ValueError(f"{lists / f'{split}.txt'} is empty; write the name of an image a line, without suffix.")
    return stems
