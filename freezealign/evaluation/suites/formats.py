"""The data formats that suites know, and what they are read as."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from freezealign.data.sources import open_pairs
from freezealign.evaluation.testsets import (
    CaptionedImages,
    ClassifiedImages,
    MaskedImages,
    read_benchmark_captions,
    read_benchmark_classes,
    read_class_folders,
    read_masks,
    read_voc,
)
from freezealign.images import read_image
from freezealign.inputs import InputError
from freezealign.samples import Sample, SampleSet, Scenes, compose_scenes, load_openmoji, load_tuxpaint


def read_data(kind: type, data: Mapping[str, Any], root: Path) -> Any:
    """Return the data set that a task names.

    Args:
        kind: ``ClassifiedImages``, ``CaptionedImages`` or ``MaskedImages``.
        data: ``format`` and the arguments of its reader.
        root: What relative paths start from.

    Raises:
        ValueError: If there is no such format for this kind, or its reader takes other arguments.
    """
    arguments = dict(data)
    name = arguments.pop("format", None)
    known = [known for known, some in READERS if some is kind]
    if (name, kind) not in READERS:
        raise ValueError(f"there is no format {name!r} of {kind.__name__}; choose one of {known}.")
    return _call(f"the format '{name}'", READERS[name, kind], root, **arguments)


def _call(what: str, function: Callable[..., Any], given: Any, /, **arguments: Any) -> Any:
    """Return what ``function`` makes of ``given`` and arguments from a suite; a ``ValueError`` says which it takes."""
    signature = inspect.signature(function)
    try:
        signature.bind(given, **arguments)
    except TypeError as error:
        raise ValueError(f"{what} takes {list(signature.parameters)[1:]}: {error}.") from None
    return function(given, **arguments)


def _benchmark_classes(root: Path, path: str, split: str = "test") -> ClassifiedImages:
    return read_benchmark_classes(root / path, split)


def _benchmark_captions(root: Path, path: str | Mapping[str, str], split: str = "test") -> CaptionedImages:
    if isinstance(path, str):
        return read_benchmark_captions(root / path, split)
    return read_benchmark_captions({language: root / some for language, some in path.items()}, split)


def _class_folders(root: Path, path: str) -> ClassifiedImages:
    return read_class_folders(root / path)


def _captions(root: Path, path: str, text: str = "text") -> CaptionedImages:
    pairs = list(open_pairs(root / path, text=text))
    texts = [pair["text"] if isinstance(pair["text"], list) else [pair["text"]] for pair in pairs]
    texts = [[text for text in some if text and not callable(text)] for some in texts]
    return CaptionedImages([pair["image"] for pair in pairs], {"": texts})


def _voc(root: Path, path: str, split: str = "val") -> MaskedImages:
    return read_voc(root / path, split)


def _mask_dataset(root: Path, path: str, class_names: list[str], split: str = "validation") -> MaskedImages:
    from datasets import load_dataset, load_from_disk

    folder = root / path
    dataset = load_from_disk(str(folder)) if folder.is_dir() else load_dataset(path, split=split)
    return read_masks(dataset[split] if isinstance(dataset, dict) else dataset, class_names)


def _tuxpaint_captions(root: Path, path: str, fold: int = 0, languages: Sequence[str] | None = None) -> CaptionedImages:
    return _sample_captions(load_tuxpaint(root / path, fold), languages)


def _tuxpaint_categories(root: Path, path: str, fold: int = 0) -> ClassifiedImages:
    """The class of a stamp is the folder that it lies in, at the top; all folders, because not every fold has all."""
    stamps = load_tuxpaint(root / path, fold)
    names = sorted({_top_folder(sample) for sample in stamps.samples})
    test = _readable(stamps.test)
    return ClassifiedImages(
        [sample.image for sample in test], [names.index(_top_folder(sample)) for sample in test], names
    )


def _top_folder(sample: Sample) -> str:
    return sample.key.split("/")[0]


def _openmoji_captions(root: Path, languages: Sequence[str] | None = None) -> CaptionedImages:
    return _sample_captions(load_openmoji(), languages)


def _sample_captions(samples: SampleSet, languages: Sequence[str] | None) -> CaptionedImages:
    chosen, test = languages or samples.languages, _readable(samples.test)
    captions = {code: [[s.captions[code]] if code in s.captions else [] for s in test] for code in chosen}
    return CaptionedImages([sample.image for sample in test], captions)


def _readable(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples whose picture can be read; some of the stamps' SVG files cannot."""
    readable = []
    for sample in samples:
        with suppress(InputError):
            read_image(sample.image)
            readable.append(sample)
    return readable


def _scene_captions(root: Path, samples: str, **options: Any) -> CaptionedImages:
    scenes = _compose(root, samples, **options)
    captions = {language: [[text] for text in texts] for language, texts in scenes.captions.items()}
    return CaptionedImages(scenes.images, captions)


def _scene_masks(root: Path, samples: str, **options: Any) -> MaskedImages:
    scenes = _compose(root, samples, **options)
    return MaskedImages(scenes.images, scenes.masks, scenes.class_names)


def _compose(root: Path, samples: str, path: str = "", fold: int = 0, **options: Any) -> Scenes:
    """Return scenes of held-out samples; ``options`` are those of :func:`compose_scenes`."""
    if samples not in ("openmoji", "tuxpaint"):
        raise ValueError(f"scenes are made of the samples openmoji or tuxpaint, not of '{samples}'.")
    drawn_from = load_openmoji() if samples == "openmoji" else load_tuxpaint(root / path, fold)
    scenes: Scenes = _call("scenes", compose_scenes, drawn_from.test, **options)
    return scenes


READERS: dict[tuple[str, type], Callable[..., Any]] = {
    ("clip-benchmark", ClassifiedImages): _benchmark_classes,
    ("class-folders", ClassifiedImages): _class_folders,
    ("tuxpaint", ClassifiedImages): _tuxpaint_categories,
    ("clip-benchmark", CaptionedImages): _benchmark_captions,
    ("captions", CaptionedImages): _captions,
    ("openmoji", CaptionedImages): _openmoji_captions,
    ("tuxpaint", CaptionedImages): _tuxpaint_captions,
    ("scenes", CaptionedImages): _scene_captions,
    ("voc", MaskedImages): _voc,
    ("datasets", MaskedImages): _mask_dataset,
    ("scenes", MaskedImages): _scene_masks,
}
"""From a format and what is read to its reader, called with the root folder and the arguments in the suite."""
