"""Samples: pictures with names in several languages, split into training and test."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from freezealign.images import read_image
from freezealign.inputs import InputError

VISIBLE = 128
"""Alpha from which on a pixel belongs to the object, of 255."""


@dataclass(frozen=True)
class Sample:
    """One picture.

    Args:
        key: Identifies it; the split is a hash of it.
        image: Reads the picture when called; what ``encode`` and ``fit`` take as an image.
        captions: Language code to caption.
        cutout: Reads the object alone when called: RGBA, cropped by :func:`crop_to_object`. ``None`` where the picture
            has no transparency to tell the object from its surroundings.
    """

    key: str
    image: Callable[[], Any]
    captions: dict[str, str]
    cutout: Callable[[], Image.Image] | None = None


@dataclass(frozen=True)
class SampleSet:
    """A data set.

    Args:
        name: For reports.
        licence: Licence and attribution of the pictures, for reports.
        languages: Codes of the languages, English first.
        samples: The pictures.
        is_test: Whether a sample is held out.
    """

    name: str
    licence: str
    languages: tuple[str, ...]
    samples: tuple[Sample, ...]
    is_test: Callable[[Sample], bool]

    @property
    def train(self) -> list[Sample]:
        """What may be trained on."""
        return [sample for sample in self.samples if not self.is_test(sample)]

    @property
    def test(self) -> list[Sample]:
        """What is held out."""
        return [sample for sample in self.samples if self.is_test(sample)]

    def digest(self) -> str:
        """Return a SHA-256 over keys and captions: what features computed from this set may be reused for."""
        lines = [f"{sample.key}\t{sorted(sample.captions.items())}" for sample in self.samples]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def pairs(samples: Sequence[Sample], language: str = "en") -> list[dict[str, Any]]:
    """Return image–text pairs of the samples that have a caption in ``language``."""
    return [{"image": s.image, "text": s.captions[language]} for s in samples if language in s.captions]


def hash_fold(key: str, folds: int = 5) -> int:
    """Return which of ``folds`` parts a key falls into, by its MD5."""
    return int(hashlib.md5(key.encode(), usedforsecurity=False).hexdigest(), 16) % folds


def render_svg(svg: str, name: str, pixels: int = 300, background: str | None = "white") -> Image.Image:
    """Return an SVG document rendered ``pixels`` wide on a background; ``None`` leaves it transparent.

    Raises:
        InputError: If the document cannot be rendered.
    """
    import resvg_py

    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=pixels, background=background))
    except ValueError as error:
        raise InputError(f"cannot render {name}: {error}") from None
    return Image.open(io.BytesIO(png))


def read_drawing(path: Path) -> Image.Image:
    """Return a picture on white, an SVG file rendered; an :class:`InputError` says why it cannot be read."""
    if path.suffix != ".svg":
        return read_image(path)
    return render_svg(path.read_text(encoding="utf-8", errors="replace"), path.name)


def read_cutout(path: Path) -> Image.Image:
    """Return what a picture shows alone, as :func:`crop_to_object` does; errors as of :func:`read_drawing`."""
    try:
        if path.suffix == ".svg":
            svg = path.read_text(encoding="utf-8", errors="replace")
            picture = render_svg(svg, path.name, background=None).convert("RGBA")
        else:
            with Image.open(path) as image:  # which read_image lays on white
                picture = image.convert("RGBA")
    except InputError:
        raise
    except Exception as error:  # a damaged file makes Pillow's decoders raise whatever they happen to trip over
        raise InputError(f"cannot read the image {path.name}: {error}.") from None
    return crop_to_object(picture, path.name)


def crop_to_object(picture: Image.Image, name: str) -> Image.Image:
    """Return an RGBA picture cropped to the box of its visible pixels, those with alpha of at least ``VISIBLE``.

    Raises:
        InputError: If no pixel is visible.
    """
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha >= VISIBLE)).getbbox()
    if box is None:
        raise InputError(f"{name} has no visible pixel: its alpha is below {VISIBLE} everywhere.")
    return picture.crop(box)
