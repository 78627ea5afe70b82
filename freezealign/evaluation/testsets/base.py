"""What the readers of test sets return: images that are read when asked for, and what is known of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from freezealign.evaluation.masks import read_masked
from freezealign.files import read_limited
from freezealign.inputs import InputError, Skipped, shorten, skipped_pairs
from freezealign.modality import read_item, read_items, read_text


@dataclass(frozen=True)
class TestSet:
    """Images, and what is known of each.

    Args:
        images: n images, in any form ``encode_image`` takes.
        skipped: What was left out, by its position in the data: whole images, and captions of others.

    Raises:
        ValueError: If there are no images, or what is known is of another number of them.
    """

    __test__ = False  # pytest takes it for one of its own
    known: ClassVar[str]

    images: Sequence[Any]
    skipped: list[Skipped] = field(default_factory=list, kw_only=True)

    def __post_init__(self) -> None:
        if not len(self.images):
            raise ValueError("the test set has no images.")
        known = getattr(self, self.known)
        for language, values in known.items() if isinstance(known, Mapping) else [("", known)]:
            if len(values) != len(self.images):
                where = f" in {language}" * bool(language)
                raise ValueError(f"{len(self.images)} images but {self.known} of {len(values)}{where}; each needs one.")

    def readable(self, strict: bool = False) -> Self:
        """Return the set without what cannot be read, which is added to ``skipped``; reads every image once.

        Args:
            strict: Raise at the first one instead.

        Raises:
            InputError: If none can be read, or ``strict`` and one cannot; the message gives its position.
        """
        reasons = {entry.index: entry.reason for entry in skipped_pairs(self.skipped)}
        found = len(self.images) + len(reasons)
        places = [place for place in range(found) if place not in reasons]
        for number, place in enumerate(places):
            try:
                self._read(number)
            except InputError as error:
                reasons[place] = str(error)
        skipped = left_out(reasons, found, strict, [entry for entry in self.skipped if entry.item])

        def kept(values: Any) -> Any:
            if isinstance(values, Mapping):
                return {language: kept(some) for language, some in values.items()}
            return [value for value, place in zip(values, places) if place not in reasons]

        known = {name: kept(getattr(self, name)) for name in ("images", self.known)}
        return replace(self, skipped=skipped, **known)

    def _read(self, number: int) -> Any:
        return read_item(self.images[number], "image")


@dataclass(frozen=True)
class ClassifiedImages(TestSet):
    """Images of which the class is known.

    Args:
        labels: For each the index of its class.
        class_names: The names of the classes.
        templates: Prompts with ``{c}`` where the name goes, if the data set comes with any.

    Raises:
        ValueError: Also if a label is no index of a class name.
    """

    known = "labels"

    labels: list[int]
    class_names: list[str]
    templates: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for number, label in enumerate(self.labels):
            if not isinstance(label, Integral):
                raise ValueError(
                    f"label {shorten(label)} of image {number} is no whole number; give the index of its class name."
                )
            if not 0 <= label < len(self.class_names):
                raise ValueError(
                    f"label {label} of image {number} has no name among the {len(self.class_names)} class names; give "
                    "every class one, in the order of the labels, which count from 0."
                )


@dataclass(frozen=True)
class CaptionedImages(TestSet):
    """Images with captions, in one language or several.

    Args:
        captions: For each language a list of captions of each image; the only language may be called ``""``.
    """

    known = "captions"

    captions: dict[str, list[list[str]]]


@dataclass(frozen=True)
class MaskedImages(TestSet):
    """Images of which the class of each pixel is known.

    Args:
        masks: For each its mask, in any form :func:`freezealign.evaluation.masks.read_mask` takes: 0 is background, i
            is ``class_names[i - 1]``, 255 does not count.
        class_names: The names of the classes, without background; or such a list for each language.
    """

    known = "masks"

    masks: Sequence[Any]
    class_names: list[str] | dict[str, list[str]]

    def _read(self, number: int) -> None:
        read_masked(self.images[number], self.masks[number])


def left_out(
    reasons: Mapping[int, str], found: int, strict: bool = False, captions: Sequence[Skipped] = ()
) -> list[Skipped]:
    """Return what is left out of so much, with ``captions`` of other images; in order.

    Raises:
        InputError: If that is all, or ``strict`` and there is any.
    """
    skipped = [Skipped(index, reason) for index, reason in reasons.items()]
    skipped += [entry for entry in captions if entry.index not in reasons]
    skipped.sort(key=lambda entry: entry.index)
    if skipped and (strict or len(reasons) == found):
        first = skipped[0]
        raise InputError(f"item {first.index} of {found}{f', {first.item}' * bool(first.item)}: {first.reason}")
    return skipped


def read_captions(index: int, texts: Sequence[Any], skipped: list[Skipped], language: str = "") -> list[str]:
    """Return an image's good captions; each bad one among them is added to ``skipped``.

    Raises:
        InputError: If all are bad.
    """
    good, bad = read_items(texts, read_text)
    if bad and not good:
        raise InputError(next(iter(bad.values())))
    where = f" in {language}" * bool(language)
    skipped += [Skipped(index, reason, f"text {place}{where}") for place, reason in bad.items()]
    return good


def read_lines(path: Path, remedy: str) -> list[str]:
    """Return the lines of a UTF-8 file, without white space around them; the remedy is told where there is no file.

    Raises:
        OSError: If it is missing, no regular file, or too large to be a list.
        ValueError: If it is not UTF-8.
    """
    try:
        return [line.strip() for line in read_limited(path).decode("utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; {remedy}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from None


def find_lines(path: Path) -> list[str] | None:
    """Return what :func:`read_lines` does, or ``None`` if there is nothing of that name."""
    return read_lines(path, "it is a link to nothing.") if os.path.lexists(path) else None


def check_names(path: Path, names: list[str]) -> list[str]:
    """Return the names of classes that a file holds; raise a ``ValueError`` if it has none, or one is blank."""
    if not all(names) or not names:
        what = f"has nothing in line {names.index('') + 1}" if names else "is empty"
        raise ValueError(f"{path} {what}; write the name of a class a line.")
    return names
