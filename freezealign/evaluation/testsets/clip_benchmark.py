"""Test sets in clip-benchmark's webdataset layout, as its exporter writes them.

``ROOT/SPLIT/`` holds ``nshards.txt`` and the shards ``0.tar``, ``1.tar``, …, whose samples have an image and a ``.cls``
with the index of its class, or a ``.txt`` with a caption a line. ``ROOT/`` holds ``classnames.txt`` and
``zeroshot_classification_templates.txt``, or ``dataset_type.txt``, which says ``retrieval``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from freezealign.data.sources.shards import Member, find_image, iterate_samples
from freezealign.evaluation.testsets.base import CaptionedImages, ClassifiedImages
from freezealign.evaluation.testsets.lines import find_lines, read_lines

SUFFIXES = {"classification": "cls", "retrieval": "txt"}
"""For each type of data set the suffix of what goes with an image."""


@dataclass(frozen=True)
class _Entry:
    """A sample: its key, where its image lies, and the text of its ``.cls`` or ``.txt``."""

    key: str
    image: Member
    text: str


def read_benchmark_classes(root: str | Path, split: str = "test") -> ClassifiedImages:
    """Return a classification data set; its images stay in the shards until they are called for.

    Args:
        root: The folder.
        split: The sub-folder of the shards.

    Raises:
        FileNotFoundError: If ``nshards.txt``, a shard or ``classnames.txt`` is missing.
        ModuleNotFoundError: If webdataset is not installed.
        ValueError: If the data set is of another type, a shard is damaged or too many, the split is empty, or an image
            has no label or one without a class name.
    """
    root = Path(root)
    entries = _read_split(root, split, "classification")
    names = read_lines(root / "classnames.txt", "write the name of a class a line there, in the order of the labels.")
    templates = find_lines(root / "zeroshot_classification_templates.txt")
    return ClassifiedImages([entry.image for entry in entries], [_label(entry) for entry in entries], names, templates)


def read_benchmark_captions(roots: Mapping[str, str | Path] | str | Path, split: str = "test") -> CaptionedImages:
    """Return a retrieval data set; its images stay in the shards until they are called for.

    A blank line is no caption.

    Args:
        roots: The folder, or one for each language. They hold the same images in the same order; those of the first
            are returned.
        split: The sub-folder of the shards.

    Raises:
        FileNotFoundError: If ``nshards.txt`` or a shard is missing.
        ModuleNotFoundError: If webdataset is not installed.
        ValueError: If a data set is of another type, a shard is damaged or too many, the split is empty, an image has
            no captions, or languages have different images, known by their keys and their sizes in bytes.
    """
    folders = roots if isinstance(roots, Mapping) else {"": roots}
    if not folders:
        raise ValueError("there is no language; give the folder of at least one.")
    read = {language: _read_split(Path(root), split, "retrieval") for language, root in folders.items()}
    first, entries = next(iter(read.items()))
    for language, others in read.items():
        _check_same_images(entries, others, first, language)
    captions = {language: [_captions(entry) for entry in some] for language, some in read.items()}
    return CaptionedImages([entry.image for entry in entries], captions)


def _read_split(root: Path, split: str, kind: str) -> list[_Entry]:
    shards = _find_shards(root, split)
    _check_type(root, kind)
    entries = [entry for path in shards for entry in _read_shard(path, SUFFIXES[kind])]
    if not entries:
        raise ValueError(f"the split '{split}' of {root} is empty: there is no sample in its {len(shards)} shards.")
    return entries


def _find_shards(root: Path, split: str) -> list[Path]:
    """Return the shards in order, after a check that they are as many as ``nshards.txt`` says."""
    splits = sorted(path.parent.name for path in root.glob("*/nshards.txt"))
    lines = read_lines(root / split / "nshards.txt", f"it says how many shards a split has. {root} has {splits}.")
    if len(lines) != 1 or not lines[0].isdecimal():
        raise ValueError(f"{root / split / 'nshards.txt'} holds {lines}, not one number; write that of the shards.")
    names = [f"{number}.tar" for number in range(int(lines[0]))]
    found = {path.name for path in (root / split).glob("*.tar")}
    if missing := [name for name in names if name not in found]:
        raise FileNotFoundError(
            f"{root / split}: {len(missing)} of {len(names)} shards are missing, the first is '{missing[0]}'; fetch it."
        )
    if extra := sorted(found.difference(names)):
        raise ValueError(
            f"{root / split} holds '{extra[0]}', but nshards.txt says {len(names)} shards; remove it, or correct that."
        )
    return [root / split / name for name in names]


def _check_type(root: Path, expected: str) -> None:
    found = (find_lines(root / "dataset_type.txt") or ["classification"])[0].lower()
    readers = {"classification": "read_benchmark_classes", "retrieval": "read_benchmark_captions"}
    if found != expected:
        remedy = f"read it with {readers[found]}" if found in readers else f"only {list(readers)} can be read"
        raise ValueError(f"{root} is a data set for {found}, by its dataset_type.txt, not for {expected}; {remedy}.")


def _read_shard(path: Path, suffix: str) -> list[_Entry]:
    damage: list[str] = []
    with path.open("rb") as file:
        samples = list(iterate_samples(path, file, damage))
    if damage:  # told first, because it may have left out what a sample lacks
        raise ValueError(f"cannot read all of {path}: {' '.join(damage)} Fetch it anew.")
    return [_read_entry(sample, path, suffix) for sample in samples]


def _read_entry(sample: Mapping[str, Any], path: Path, suffix: str) -> _Entry:
    key, image = sample["__key__"], find_image(sample)
    found = [name for name in sample if not name.startswith("__")]
    if image is None or suffix not in sample:
        raise ValueError(f"{path}: '{key}' needs an image and a .{suffix}, but has only {found}.")
    try:
        return _Entry(key, image, sample[suffix]().decode())
    except UnicodeDecodeError:
        raise ValueError(f"{path}: the .{suffix} of '{key}' is not UTF-8; write it as UTF-8.") from None


def _label(entry: _Entry) -> int:
    try:
        return int(entry.text)
    except ValueError:
        raise ValueError(
            f"{entry.image.path}: the .cls of '{entry.key}' is {entry.text!r}, not the index of a class."
        ) from None


def _captions(entry: _Entry) -> list[str]:
    """Return the captions, split as clip-benchmark's own reader does it, which also ends lines at rarer characters."""
    return [line for line in entry.text.splitlines() if line.strip()]


def _check_same_images(entries: Sequence[_Entry], others: Sequence[_Entry], first: str, language: str) -> None:
    """Raise at the first difference; sizes count, because the exporter's keys are no more than positions."""
    for number, (entry, other) in enumerate(zip_longest(entries, others)):
        if _identity(entry) != _identity(other):
            raise ValueError(
                f"image {number} is {_identity(entry)} in '{first}', but {_identity(other)} in '{language}'; export "
                "every language from the same images, in the same order and format."
            )


def _identity(entry: _Entry | None) -> str:
    return "missing" if entry is None else f"'{entry.key}' of {entry.image.size} bytes"
