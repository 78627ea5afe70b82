"""Composed scenes: sample objects on a grid, with exact masks and a long caption that says what stands where.

Evaluation data for segmentation (a mask of every object comes with its alpha) and for retrieval with long captions
(scenes in groups that differ only in what their captions say last).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from freezealign.inputs import Skipped
from freezealign.samples.places import PLACES, describe_grid
from freezealign.samples.sample import VISIBLE, Sample

LONG = 16
"""Objects of a scene with a long caption: 150 to 250 tokens of all-MiniLM-L6-v2 in English.

Measured on 1,000 scenes of held-out samples: OpenMoji 154 to 192, always in the range; Tux Paint stamps 169 to 285, in
the range in 96 % (fold 3) to 100 % (fold 0), beyond the encoder's 256 tokens in at most 2.5 %.
"""
MARGIN = 1 / 16
"""Empty border of a cell, in sides of the cell."""
SMALLEST_CELL = 16
DARKEST = 200
"""Least red, green and blue of a background, of 255."""


@dataclass(frozen=True)
class Scenes:
    """Pictures of several objects, with masks and captions; all lists but the last two have one entry a scene.

    Args:
        images: Draw the scenes when called: RGB, square.
        masks: Draw their masks when called: (side, side) int64, 0 for the background, i for the class that
            ``class_names[language][i - 1]`` names.
        captions: Language code to texts that describe every object and its place, in reading order.
        keys: The keys of the objects, in reading order.
        class_names: Language code to the captions of all samples that could be used, sorted by their keys. Two
            samples may share a name; two objects of a scene never do.
        skipped: The samples whose cutout cannot be read, by their position in the samples given.
    """

    images: list[Callable[[], Image.Image]]
    masks: list[Callable[[], np.ndarray]]
    captions: dict[str, list[str]]
    keys: list[list[str]]
    class_names: dict[str, list[str]]
    skipped: list[Skipped]


@dataclass(frozen=True)
class _Scene:
    """What one scene is drawn from: samples in reading order, by the numbers of their classes."""

    objects: dict[int, Sample]
    background: tuple[int, int, int]
    side: int

    @property
    def columns(self) -> int:
        return math.ceil(math.sqrt(len(self.objects)))


def compose_scenes(
    samples: Sequence[Sample],
    count: int,
    objects: int = 4,
    languages: Sequence[str] = ("en",),
    side: int = 520,
    variants: int = 1,
    changed: int = 2,
    seed: int = 0,
) -> Scenes:
    """Return scenes of objects on a grid as square as possible; the same on every machine, in any order of samples.

    Only samples with a cutout and a caption in every language are used, so all languages describe the same scenes.
    Every cutout is read once before the first scene is composed, to find those that cannot be.

    Args:
        samples: What the objects are drawn from; a split's held-out part, for an honest test.
        count: Number of scenes in all.
        objects: Objects of a scene.
        languages: Codes of the languages to describe the scenes in.
        side: Pixels a side of the square scenes.
        variants: Scenes of a group. They share background, places, and all objects but the last ones in reading order:
            only who reads a caption to its end can tell them apart.
        changed: How many objects differ between the variants, each of them from all others of its group.
        seed: Another seed gives other scenes.

    Raises:
        ValueError: If there are too few samples that share no caption, a language has no words for places, or a number
            does not fit the others.
    """
    _check_numbers(count, objects, side, variants, changed)
    if unknown := [language for language in languages if language not in PLACES]:
        raise ValueError(f"there are no words for places in {unknown}; there are for {list(PLACES)}.")
    usable, skipped = _find_usable(samples, languages)
    numbers = {sample.key: number for number, sample in enumerate(usable, start=1)}
    own = changed if variants > 1 else 0
    shared, scenes = objects - own, []
    for group in range(count // variants):
        red, green, blue = (DARKEST + byte % (256 - DARKEST) for byte in _hash(seed, group, "background")[:3])
        shuffled = sorted(usable, key=lambda sample: _hash(seed, group, sample.key))
        drawn = _draw_different(shuffled, shared + variants * own, languages)
        for variant in range(variants):
            start = shared + variant * own
            chosen = {numbers[sample.key]: sample for sample in drawn[:shared] + drawn[start : start + own]}
            scenes.append(_Scene(chosen, (red, green, blue), side))
    return Scenes(
        images=[partial(_draw_image, scene) for scene in scenes],
        masks=[partial(_draw_mask, scene) for scene in scenes],
        captions={code: [_describe(scene, code) for scene in scenes] for code in languages},
        keys=[[sample.key for sample in scene.objects.values()] for scene in scenes],
        class_names={language: [sample.captions[language] for sample in usable] for language in languages},
        skipped=skipped,
    )


def _check_numbers(count: int, objects: int, side: int, variants: int, changed: int) -> None:
    for name, number in {"count": count, "objects": objects, "variants": variants}.items():
        if number < 1:
            raise ValueError(f"{name} is {number}, but must be at least 1.")
    if count % variants:
        raise ValueError(f"{count} scenes cannot be split into groups of {variants}; take a multiple of {variants}.")
    if variants > 1 and not 1 <= changed <= objects:
        raise ValueError(f"{changed} of {objects} objects cannot change; changed is 1 to {objects}.")
    smallest = SMALLEST_CELL * math.ceil(math.sqrt(objects))
    if side < smallest:
        raise ValueError(f"{objects} objects do not fit {side} pixels; side must be at least {smallest}.")


def _find_usable(samples: Sequence[Sample], languages: Sequence[str]) -> tuple[list[Sample], list[Skipped]]:
    """Return the samples that have all it takes, sorted by key, and those that are broken."""
    usable, skipped = [], []
    for index, sample in enumerate(samples):
        if sample.cutout is None or not all(language in sample.captions for language in languages):
            continue
        try:
            sample.cutout()
        except Exception as error:  # whatever one sample trips over is that sample's failure
            skipped.append(Skipped(index, str(error)))
        else:
            usable.append(sample)
    return sorted(usable, key=lambda sample: sample.key), skipped


def _draw_different(samples: Sequence[Sample], wanted: int, languages: Sequence[str]) -> list[Sample]:
    """Return the first ``wanted`` samples that share no caption with one before."""
    drawn: list[Sample] = []
    taken: set[tuple[str, str]] = set()
    for sample in samples:
        captions = {(language, sample.captions[language]) for language in languages}
        if taken.isdisjoint(captions):
            drawn.append(sample)
            taken |= captions
        if len(drawn) == wanted:
            return drawn
    raise ValueError(
        f"a group of scenes needs {wanted} samples that share no caption, but only {len(drawn)} were found among the "
        f"{len(samples)} with a readable cutout and a caption in every language of {list(languages)}; ask for fewer "
        "objects, variants or languages."
    )


def _describe(scene: _Scene, language: str) -> str:
    return describe_grid(language, [sample.captions[language] for sample in scene.objects.values()], scene.columns)


def _hash(*parts: object) -> bytes:
    """Return 16 bytes that look random, but depend on the parts only, not on a library's generator."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).digest()


def _draw_image(scene: _Scene) -> Image.Image:
    image = Image.new("RGB", (scene.side, scene.side), scene.background)
    for cutout, corner in _place(scene):
        image.paste(cutout, corner, cutout)
    return image


def _draw_mask(scene: _Scene) -> np.ndarray:
    mask = np.zeros((scene.side, scene.side), dtype=np.int64)
    for number, (cutout, (left, top)) in zip(scene.objects, _place(scene)):
        visible = np.asarray(cutout.getchannel("A")) >= VISIBLE
        mask[top : top + cutout.height, left : left + cutout.width][visible] = number
    return mask


def _place(scene: _Scene) -> list[tuple[Image.Image, tuple[int, int]]]:
    """Return the objects as large as their cells allow with a margin, and their upper left corners, in the middle."""
    width, height = scene.side / scene.columns, scene.side / math.ceil(len(scene.objects) / scene.columns)
    placed = []
    for cell, sample in enumerate(scene.objects.values()):
        row, column = divmod(cell, scene.columns)
        cutout: Image.Image = sample.cutout()  # type: ignore[misc]  # only samples with a cutout are usable
        scale = (1 - 2 * MARGIN) * min(width / cutout.width, height / cutout.height)
        size = max(1, round(scale * cutout.width)), max(1, round(scale * cutout.height))
        left, top = round((column + 0.5) * width - size[0] / 2), round((row + 0.5) * height - size[1] / 2)
        placed.append((cutout.resize(size, Image.Resampling.LANCZOS), (left, top)))
    return placed
