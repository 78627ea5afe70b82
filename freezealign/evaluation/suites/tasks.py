"""What a task of a suite names: its evaluator, the format of its data, and the options of both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from freezealign.data.sources import open_pairs
from freezealign.evaluation.base import Evaluator
from freezealign.evaluation.cka import CKAEvaluator
from freezealign.evaluation.long_context import LongContextEvaluator
from freezealign.evaluation.prompts import check_texts
from freezealign.evaluation.retrieval import RetrievalEvaluator, captions_of
from freezealign.evaluation.segmentation import SegmentationEvaluator
from freezealign.evaluation.suites.suite import Task, check_kinds
from freezealign.evaluation.testsets import (
    CaptionedImages,
    ClassifiedImages,
    MaskedImages,
    TestSet,
    benchmark_class_names,
    benchmark_templates,
    read_benchmark_captions,
    read_benchmark_classes,
    read_class_folders,
    read_masks,
    read_voc,
)
from freezealign.evaluation.testsets.base import left_out, read_captions
from freezealign.evaluation.windows import SlidingWindows
from freezealign.evaluation.zero_shot import ZeroShotClassificationEvaluator
from freezealign.files import read_json
from freezealign.inputs import Skipped, Unreadable
from freezealign.samples import Sample, SampleSet, Scenes, compose_scenes, load_openmoji, load_tuxpaint

EVALUATORS: dict[str, tuple[Callable[..., Evaluator], type[TestSet]]] = {
    "zero-shot": (ZeroShotClassificationEvaluator, ClassifiedImages),
    "retrieval": (RetrievalEvaluator, CaptionedImages),
    "cka": (CKAEvaluator, CaptionedImages),
    "long-context": (LongContextEvaluator, CaptionedImages),
    "segmentation": (SegmentationEvaluator, MaskedImages),
}
BY_LANGUAGE = ("clip-benchmark", CaptionedImages)
"""What is read from a path for each language."""


def make_evaluator(
    task: Task, root: Path, batch_size: int, show_progress_bar: bool, readable: bool = False
) -> tuple[Evaluator, list[Skipped]]:
    """Return the evaluator of a task, and what of its data was left out.

    Paths of data start from ``root``; ``readable`` reads every image once, and leaves out those that cannot be read.

    Raises:
        ValueError: If the task names something that does not exist, or an option is of the wrong type.
    """
    if task.evaluator not in EVALUATORS:
        raise ValueError(f"there is no evaluator '{task.evaluator}'; choose one of {list(EVALUATORS)}.")
    evaluator, kind = EVALUATORS[task.evaluator]
    known = set(inspect.signature(evaluator).parameters) - {"images", "name", "batch_size", "show_progress_bar"}
    if unknown := sorted(set(task.options) - known, key=str):
        raise ValueError(f"{task.evaluator} has no option {unknown}; it has {sorted(known)}.")
    check_kinds(task.options, "the options")
    given = {key: _resolved(key, value, root) for key, value in task.options.items()}
    data = read_data(kind, task.data, root)
    data = data.readable() if readable else data
    shown = {key: value for key, value in vars(data).items() if key != "skipped" and value is not None}
    options = {**shown, **given, "batch_size": batch_size, "show_progress_bar": show_progress_bar}
    return evaluator(**options), data.skipped


def read_data(kind: type[TestSet], data: Mapping[str, Any], root: Path) -> Any:
    """Return the data set of a kind that a task names.

    ``data`` holds the ``format``, the arguments of its reader, and ``strict``: refuse what cannot be read whole.

    Raises:
        ValueError: If there is no such format for this kind, or its reader takes other arguments.
    """
    arguments = dict(data)
    name, strict = arguments.pop("format", None), arguments.pop("strict", False)
    if not isinstance(name, str) or (name, kind) not in READERS:
        known = [known for known, some in READERS if some is kind]
        raise ValueError(f"there is no format {name!r} of {kind.__name__}; choose one of {known}.")
    check_kinds({"strict": strict}, "the data")
    if isinstance(arguments.get("path"), Mapping) and (name, kind) != BY_LANGUAGE:
        raise ValueError(
            f"'path' of the format '{name}' is a str; only captions of clip-benchmark have one a language."
        )
    found = _call(f"the format '{name}'", READERS[name, kind], arguments, root)
    return found.readable(strict=True) if strict else found


def _call(what: str, function: Callable[..., Any], arguments: Mapping[str, Any], *given: Any) -> Any:
    """Return what a function makes of what is given and of a suite's arguments; an error says which it takes."""
    signature = inspect.signature(function)
    try:
        signature.bind(*given, **arguments)
    except TypeError as error:
        raise ValueError(f"{what} takes {list(signature.parameters)[len(given) :]}: {error}.") from None
    check_kinds(arguments, what)
    return function(*given, **arguments)


def _resolved(key: str, value: Any, root: Path) -> Any:
    """Return an option as the evaluator takes it."""
    if key == "windows":
        return _call(key, SlidingWindows, value)
    if key == "descriptions":
        return _read_descriptions(root / value)
    if key in ("class_names", "templates") and isinstance(value, Mapping) and "benchmark" in value:
        read = benchmark_class_names if key == "class_names" else benchmark_templates

        def published(benchmark: str, languages: list[str]) -> dict[str, Any]:
            return {language: read(benchmark, language) for language in languages}

        return _call(key, published, value)
    return value


def _read_descriptions(path: Path) -> dict[str, list[str]]:
    """Return the descriptions of classes in a JSON object: name to sentences."""
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(value, list) for value in content.values()):
        raise ValueError(f"{path} should hold an object: from each class name to a list of sentences.")
    for name, texts in content.items():
        check_texts(texts, "description", f" of {name!r} in {path}")
    return content


def _below(reader: Callable[..., Any]) -> Callable[..., Any]:
    """Return a reader whose path, or path of each language, starts from a root that is passed before it."""
    parameters = list(inspect.signature(reader).parameters.values())[1:]

    def read(root: Path, path: Any, **options: Any) -> Any:
        languages = isinstance(path, Mapping)
        return reader({code: root / some for code, some in path.items()} if languages else root / path, **options)

    first = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("root", "path")]
    read.__signature__ = inspect.Signature([*first, *parameters])  # type: ignore[attr-defined]
    return read


def _captions(path: Path, text: str = "text") -> CaptionedImages:
    pairs, captions, reasons = list(open_pairs(path, text=text)), [], {}
    bad: list[Skipped] = []
    for index, pair in enumerate(pairs):
        try:
            if isinstance(pair["image"], Unreadable):
                pair["image"]()
            captions.append(read_captions(index, captions_of(index, pair["text"]), bad))
        except ValueError as error:
            reasons[index] = f"'{pair['id']}': {error}"
    skipped = left_out(reasons, len(pairs), captions=bad)
    images = [pair["image"] for index, pair in enumerate(pairs) if index not in reasons]
    return CaptionedImages(images, {"": captions}, skipped=skipped)


def _mask_dataset(root: Path, path: str, class_names: list[str], split: str = "validation") -> MaskedImages:
    from datasets import load_dataset, load_from_disk

    folder = root / path
    dataset = load_from_disk(str(folder)) if folder.is_dir() else load_dataset(path, split=split)
    return read_masks(dataset[split] if isinstance(dataset, dict) else dataset, class_names)


def _tuxpaint_captions(path: Path, fold: int = 0, languages: Sequence[str] | None = None) -> CaptionedImages:
    return _sample_captions(load_tuxpaint(path, fold), languages)


def _tuxpaint_categories(path: Path, fold: int = 0) -> ClassifiedImages:
    """The class of a stamp is the folder that it lies in, at the top; all folders, because not every fold has all."""

    def top(sample: Sample) -> str:
        return sample.key.split("/")[0]

    stamps = load_tuxpaint(path, fold)
    names = sorted({top(sample) for sample in stamps.samples})
    labels = [names.index(top(sample)) for sample in stamps.test]
    return ClassifiedImages([sample.image for sample in stamps.test], labels, names).readable()


def _openmoji_captions(root: Path, languages: Sequence[str] | None = None) -> CaptionedImages:
    return _sample_captions(load_openmoji(), languages)


def _sample_captions(samples: SampleSet, languages: Sequence[str] | None) -> CaptionedImages:
    """Return held-out samples with their captions; some of the stamps' SVG files cannot be read."""
    chosen, test = languages or samples.languages, samples.test
    captions = {code: [[s.captions[code]] if code in s.captions else [] for s in test] for code in chosen}
    return CaptionedImages([sample.image for sample in test], captions).readable()


def _scenes(
    kind: type[TestSet], root: Path, samples: str, path: str = "", fold: int = 0, **options: Any
) -> CaptionedImages | MaskedImages:
    """Return scenes of held-out samples; ``options`` are those of :func:`compose_scenes`."""
    if samples not in ("openmoji", "tuxpaint"):
        raise ValueError(f"scenes are made of the samples openmoji or tuxpaint, not of '{samples}'.")
    drawn_from = load_openmoji() if samples == "openmoji" else load_tuxpaint(root / path, fold)
    scenes: Scenes = _call("scenes", compose_scenes, options, drawn_from.test)
    if kind is MaskedImages:
        return MaskedImages(scenes.images, scenes.masks, scenes.class_names, skipped=scenes.skipped)
    captions = {language: [[text] for text in texts] for language, texts in scenes.captions.items()}
    return CaptionedImages(scenes.images, captions, skipped=scenes.skipped)


READERS: dict[tuple[str, type[TestSet]], Callable[..., Any]] = {
    ("clip-benchmark", ClassifiedImages): _below(read_benchmark_classes),
    ("class-folders", ClassifiedImages): _below(read_class_folders),
    ("tuxpaint", ClassifiedImages): _below(_tuxpaint_categories),
    ("clip-benchmark", CaptionedImages): _below(read_benchmark_captions),
    ("captions", CaptionedImages): _below(_captions),
    ("openmoji", CaptionedImages): _openmoji_captions,
    ("tuxpaint", CaptionedImages): _below(_tuxpaint_captions),
    ("scenes", CaptionedImages): partial(_scenes, CaptionedImages),
    ("voc", MaskedImages): _below(read_voc),
    ("datasets", MaskedImages): _mask_dataset,
    ("scenes", MaskedImages): partial(_scenes, MaskedImages),
}
"""From a format and what is read to its reader, called with the root folder and the arguments in the suite."""
