"""From a task and its data to the evaluator that runs it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from freezealign.evaluation.base import Evaluator
from freezealign.evaluation.cka import CKAEvaluator
from freezealign.evaluation.long_context import LongContextEvaluator
from freezealign.evaluation.retrieval import RetrievalEvaluator
from freezealign.evaluation.segmentation import SegmentationEvaluator
from freezealign.evaluation.suites.formats import read_data
from freezealign.evaluation.suites.suite import Task
from freezealign.evaluation.testsets import CaptionedImages, ClassifiedImages, MaskedImages
from freezealign.evaluation.windows import SlidingWindows
from freezealign.evaluation.zero_shot import ZeroShotClassificationEvaluator

EVALUATORS: dict[str, tuple[Callable[..., Evaluator], type]] = {
    "zero-shot": (ZeroShotClassificationEvaluator, ClassifiedImages),
    "retrieval": (RetrievalEvaluator, CaptionedImages),
    "cka": (CKAEvaluator, CaptionedImages),
    "long-context": (LongContextEvaluator, CaptionedImages),
    "segmentation": (SegmentationEvaluator, MaskedImages),
}


def make_evaluator(task: Task, root: Path, batch_size: int, show_progress_bar: bool) -> Evaluator:
    """Return the evaluator of a task, its data read from below ``root``.

    Raises:
        FileNotFoundError: If the data is not there.
        ModuleNotFoundError: If reading it takes a package that is not installed.
        ValueError: If the task names something that does not exist.
    """
    if task.evaluator not in EVALUATORS:
        raise ValueError(f"there is no evaluator '{task.evaluator}'; choose one of {list(EVALUATORS)}.")
    evaluator, kind = EVALUATORS[task.evaluator]
    known = set(inspect.signature(evaluator).parameters) - {"images", "name", "batch_size", "show_progress_bar"}
    if unknown := sorted(set(task.options) - known):
        raise ValueError(f"{task.evaluator} has no option {unknown}; it has {sorted(known)}.")
    data = read_data(kind, task.data, root)
    given = {key: _resolved(key, value, root) for key, value in task.options.items()}
    options = {**_arguments(data), **given, "batch_size": batch_size, "show_progress_bar": show_progress_bar}
    return evaluator(**options)


def _arguments(data: ClassifiedImages | CaptionedImages | MaskedImages) -> dict[str, Any]:
    """Return the arguments of an evaluator that a data set has, under their own names."""
    return {key: value for key, value in vars(data).items() if value is not None}


def _resolved(key: str, value: Any, root: Path) -> Any:
    """Return an option as the evaluator takes it."""
    if key == "windows":
        return SlidingWindows(**value)
    if key == "descriptions":
        return _read_descriptions(root / value)
    if key in ("class_names", "templates") and isinstance(value, Mapping) and "benchmark" in value:
        return _published(key, **value)
    return value


def _published(key: str, benchmark: str, languages: list[str]) -> dict[str, Any]:
    """Return what the package clip-benchmark publishes for one of its data sets, by language."""
    from freezealign.evaluation.testsets import benchmark_class_names, benchmark_templates

    read: Any = benchmark_class_names if key == "class_names" else benchmark_templates
    return {language: read(benchmark, language) for language in languages}


def _read_descriptions(path: Path) -> dict[str, list[str]]:
    """Return the descriptions of classes in a JSON object: name to sentences."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(value, list) for value in content.values()):
        raise ValueError(f"{path} should hold an object: from each class name to a list of sentences.")
    return content
