"""What the readers of test sets return: images that are read when asked for, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClassifiedImages:
    """Images of which the class is known.

    Args:
        images: n images, in any form ``encode_image`` takes.
        labels: For each the index of its class.
        class_names: The names of the classes.
        templates: Prompts with ``{c}`` where the name goes, if the data set comes with any.

    Raises:
        ValueError: If there are no images, their number is not that of the labels, or a label has no class name.
    """

    images: Sequence[Any]
    labels: list[int]
    class_names: list[str]
    templates: list[str] | None = None

    def __post_init__(self) -> None:
        _check_counts(self.images, self.labels, "labels")
        for number, label in enumerate(self.labels):
            if not 0 <= label < len(self.class_names):
                raise ValueError(
                    f"label {label} of image {number} has no name among the {len(self.class_names)} class names; give "
                    "every class one, in the order of the labels, which count from 0."
                )


@dataclass(frozen=True)
class CaptionedImages:
    """Images with captions, in one language or several.

    Args:
        images: n images, in any form ``encode_image`` takes.
        captions: For each language the captions of each image; the only language may be called ``""``.

    Raises:
        ValueError: If there are no images, or a language has captions for another number of them.
    """

    images: Sequence[Any]
    captions: dict[str, list[list[str]]]

    def __post_init__(self) -> None:
        for language, captions in self.captions.items():
            _check_counts(self.images, captions, f"lists of captions{f' in {language}' * bool(language)}")


@dataclass(frozen=True)
class MaskedImages:
    """Images of which the class of each pixel is known.

    Args:
        images: n images, in any form ``encode_image`` takes.
        masks: For each its mask, in any form :func:`freezealign.evaluation.masks.read_mask` takes: 0 is background, i
            is ``class_names[i - 1]``, 255 does not count.
        class_names: The names of the classes, without background; or such a list for each language.

    Raises:
        ValueError: If there are no images, or their number is not that of the masks.
    """

    images: Sequence[Any]
    masks: Sequence[Any]
    class_names: list[str] | dict[str, list[str]]

    def __post_init__(self) -> None:
        _check_counts(self.images, self.masks, "masks")


def _check_counts(images: Sized, others: Sized, what: str) -> None:
    if not len(images):
        raise ValueError("the test set has no images.")
    if len(images) != len(others):
        raise ValueError(f"{len(images)} images but {len(others)} {what}; each image needs one.")
