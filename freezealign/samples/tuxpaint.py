"""Tux Paint stamps: about 700 pictures, mostly photographs, each described in up to 60 languages.

They are Debian's package ``tuxpaint-stamps-default``; ``make stamps`` fetches it without root where apt exists.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PIL import Image

from freezealign.samples.sample import Sample, SampleSet, hash_fold, read_cutout, read_drawing

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
        pictures = [path for path in map(description.with_suffix, (".png", ".svg")) if path.is_file()]
        if not pictures or description.relative_to(root).parts[0] == "symbols":
            continue
        key, captions = pictures[0].relative_to(root).as_posix(), read_descriptions(description)
        samples.append(Sample(key, partial(_read, pictures[0]), captions, partial(read_cutout, pictures[0])))
    return SampleSet(
        "Tux Paint stamps", LICENCE, LANGUAGES, tuple(samples), lambda sample: hash_fold(sample.key) == fold
    )


def read_descriptions(path: Path) -> dict[str, str]:
    """Return language code to description: the first line is English, then ``de.utf8=…`` and so on."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    captions = {"en": "".join(lines[:1]).strip()}
    for line in lines[1:]:
        code, separator, text = line.partition(".utf8=")
        if separator and text.strip():
            captions[code] = text.strip()
    return {code: text for code, text in captions.items() if text}


def _find_root(folder: Path) -> Path:
    for root in [folder, *folder.glob("**/stamps")]:
        if (root / "animals").is_dir():
            return root
    raise FileNotFoundError(
        f"there are no Tux Paint stamps below {folder}; 'make stamps' fetches them, or unpack Debian's "
        "tuxpaint-stamps-default and pass its folder."
    )


def _read(path: Path) -> Image.Image:
    """Return a stamp on a white square, with a border for an encoder's centre crop to cut off."""
    stamp = read_drawing(path).convert("RGB")
    side = round(BORDER * max(stamp.size))
    square = Image.new("RGB", (side, side), "white")
    square.paste(stamp, ((side - stamp.width) // 2, (side - stamp.height) // 2))
    return square
