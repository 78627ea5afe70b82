"""Tux Paint stamps: about 700 pictures, mostly photographs, each described in up to 60 languages.

They are Debian's package ``tuxpaint-stamps-default``; ``make stamps`` fetches it without root where apt exists.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PIL import Image

from freezealign.images import read_image
from freezealign.inputs import InputError
from freezealign.samples.sample import Sample, SampleSet, crop_to_object, hash_fold, render_svg

LICENCE = "Tux Paint stamps, GPL-2, Bill Kendrick and contributors (tuxpaint.org); Debian tuxpaint-stamps-default."
BORDER = 1.14
"""Side of the square in sides of the stamp: ImageNet's usual crop keeps 7/8 of a picture's side."""
LANGUAGES = ("en", "ar", "de", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt_BR", "ru", "tr", "zh_CN")


def load_tuxpaint(stamps: str | Path, fold: int = 0) -> SampleSet:
    """Return the stamps below a folder, ``symbols/`` left out; fold ``fold`` of five is held out.

    Args:
        stamps: The folder ``stamps/``, or one above it, as the package unpacks.
        fold: 0 to 4, by the MD5 of the picture's path below ``stamps/``.

    Raises:
        FileNotFoundError: If there are no stamps below the folder.
    """
    if fold not in range(5):
        raise ValueError(f"fold is 0 to 4, got {fold}.")
    root = _find_root(Path(stamps))
    samples = []
    for description in sorted(root.rglob("*.txt")):
        picture = _picture(description)
        if picture is None or description.relative_to(root).parts[0] == "symbols":
            continue
        key = picture.relative_to(root).as_posix()
        captions = read_descriptions(description)
        samples.append(Sample(key, partial(_read, picture), captions, partial(_cutout, picture)))
    return SampleSet("Tux Paint stamps", LICENCE, LANGUAGES, tuple(samples), partial(_is_test, fold=fold))


def read_descriptions(path: Path) -> dict[str, str]:
    """Return language code to description: the first line is English, then ``de.utf8=…`` and so on."""
    first, *others = path.read_text(encoding="utf-8", errors="replace").splitlines()
    captions = {"en": first.strip()}
    for line in others:
        code, separator, text = line.partition(".utf8=")
        if separator and text.strip():
            captions[code] = text.strip()
    return {code: text for code, text in captions.items() if text}


def _is_test(sample: Sample, fold: int) -> bool:
    return hash_fold(sample.key) == fold


def _find_root(folder: Path) -> Path:
    for root in [folder, *folder.glob("**/stamps")]:
        if (root / "animals").is_dir():
            return root
    raise FileNotFoundError(
        f"there are no Tux Paint stamps below {folder}; 'make stamps' fetches them, or unpack Debian's "
        "tuxpaint-stamps-default and pass its folder."
    )


def _picture(description: Path) -> Path | None:
    for suffix in (".png", ".svg"):
        path = description.with_suffix(suffix)
        if path.is_file():
            return path
    return None


def _read(path: Path) -> Image.Image:
    """Return a stamp on a white square, with a border for an encoder's centre crop to cut off."""
    svg = path.suffix == ".svg"
    stamp = render_svg(path.read_text(encoding="utf-8", errors="replace"), path.name) if svg else read_image(path)
    stamp = stamp.convert("RGB")
    side = round(BORDER * max(stamp.size))
    square = Image.new("RGB", (side, side), "white")
    square.paste(stamp, ((side - stamp.width) // 2, (side - stamp.height) // 2))
    return square


def _cutout(path: Path) -> Image.Image:
    """Return the stamp alone, with its transparency."""
    if path.suffix == ".svg":
        svg = path.read_text(encoding="utf-8", errors="replace")
        stamp = render_svg(svg, path.name, background=None).convert("RGBA")
    else:
        stamp = _read_png(path)
    return crop_to_object(stamp, path.name)


def _read_png(path: Path) -> Image.Image:
    """Return a PNG as RGBA, where :func:`~freezealign.images.read_image` would lay it on white."""
    try:
        with Image.open(path) as image:
            return image.convert("RGBA")
    except Exception as error:  # a damaged file makes Pillow's decoders raise whatever they happen to trip over
        raise InputError(f"cannot read the image {path.name}: {error}.") from None
