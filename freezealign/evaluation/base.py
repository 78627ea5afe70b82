"""What all evaluators share: sentence-transformers' call signature, results on disk, and what they ask of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from freezealign.files import write_json_atomically
from freezealign.inputs import shorten

Results = dict[str, Any]


class Evaluator:
    """Base of the evaluators.

    A subclass implements :meth:`evaluate`. Its results are flat: numbers under the metric's name, with ``_low`` and
    ``_high`` for the 95% bootstrap interval and ``_chance`` for the chance level, and ``protocol`` in words. Several
    languages each have their code in front: ``de_t2i_R@1``.

    Args:
        name: Put in front of every metric, and into the file's name.
        batch_size: Items a forward pass.
        show_progress_bar: Show progress if it takes longer than a second.

    Attributes:
        greater_is_better: Whether more of the primary metric is better.
        languages: Codes of the languages, the one to compare others with first; ``[""]`` where there is only one.
        columns: The metrics that a table shows for each language, the primary one first.
    """

    greater_is_better = True
    languages: list[str]
    columns: list[str]

    def __init__(self, name: str = "", batch_size: int = 32, show_progress_bar: bool = True) -> None:
        self.name = name
        self.options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}

    @property
    def primary_metric(self) -> str:
        """Key of the metric that decides, as it stands in the results."""
        return prefixed(self.name, prefixed(self.languages[0], self.columns[0]))

    @property
    def description(self) -> str:
        """The evaluator in words, for logs."""
        words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(self).__name__.removesuffix("Evaluator"))
        return f"{words} on {self.name}" if self.name else words

    def evaluate(self, model: Any, folder: Path | None = None) -> Results:
        """Return the results without the name in front; draw pictures of them into the folder if there is one."""
        raise NotImplementedError

    def __call__(self, model: Any, output_path: str | Path | None = None, epoch: int = -1, steps: int = -1) -> Results:
        """Evaluate ``model``, note its scores for the model card, and write them as JSON if a folder is given.

        Args:
            model: A :class:`~freezealign.FreezeAlign`, or anything whose ``encode_image`` and ``encode_text`` (and
                ``encode_tokens`` for segmentation) take a list and the options of
                :meth:`~freezealign.FreezeAlign.encode`.
            output_path: Folder for ``NAME.json`` and the pictures.
            epoch: When in training this is; -1 outside of it.
            steps: Likewise.
        """
        folder = None if output_path is None else Path(output_path)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        results = all_prefixed(self.name, self.evaluate(model, folder))
        if hasattr(model, "model_card_data"):
            model.model_card_data.set_evaluation_metrics(self, results, epoch, steps)
        if folder is not None:
            content = {"epoch": epoch, "steps": steps, **results}
            write_json_atomically(folder / f"{self.name or type(self).__name__}.json", content)
        return results


class SequentialEvaluator(Evaluator):
    """Run evaluators one after another and gather their results; the first one's primary metric decides.

    Args:
        evaluators: Each with a name of its own, which tells its metrics from the others'.
        name: Only for logs: metrics keep their evaluators' names.

    Raises:
        ValueError: If there is none, or two have one name.
    """

    def __init__(self, evaluators: Sequence[Evaluator], name: str = "") -> None:
        super().__init__(name)
        names = [evaluator.name for evaluator in evaluators]
        if not evaluators or len(set(names)) < len(names):
            raise ValueError(f"evaluators in sequence need a name each, all different: name='…'; got {names}.")
        self.evaluators = list(evaluators)
        self.greater_is_better = self.evaluators[0].greater_is_better

    @property
    def primary_metric(self) -> str:
        """Key of the metric that decides: the first evaluator's."""
        return self.evaluators[0].primary_metric

    def __call__(self, model: Any, output_path: str | Path | None = None, epoch: int = -1, steps: int = -1) -> Results:
        """Evaluate ``model`` with each; arguments as in the base, pictures in a folder for each evaluator."""
        results: Results = {}
        for evaluator in self.evaluators:
            folder = None if output_path is None else Path(output_path) / (evaluator.name or type(evaluator).__name__)
            results |= evaluator(model, folder, epoch, steps)
        return results


def by_language(values: Any) -> dict[str, Any]:
    """Return ``values`` as a mapping from language; anything else is of one nameless language.

    Raises:
        ValueError: If a language has a code that is no text, as YAML reads ``no``, or there is none.
    """
    found = dict(values) if isinstance(values, Mapping) else {"": values}
    for code in found:
        if not isinstance(code, str):
            raise ValueError(f"the code of a language is a text, got {shorten(code)}; write it in quotes, as 'no'.")
    if not found:
        raise ValueError("there is no language; give at least one.")
    return found


def prefixed(prefix: str, metric: str) -> str:
    """Return ``de_R@1`` for ``de`` and ``R@1``, and the metric alone if the prefix is empty."""
    return f"{prefix}_{metric}" if prefix else metric


def all_prefixed(prefix: str, results: Mapping[str, Any]) -> Results:
    """Return results with every metric :func:`prefixed`."""
    return {prefixed(prefix, metric): value for metric, value in results.items()}


def embed(model: Any, modality: str, items: Any, **options: Any) -> Tensor:
    """Return what a model's ``encode_image`` or ``encode_text`` does, (n, d) float32 on whatever device it comes.

    Of any other modality what ``encode(…, modality=…)`` does.
    """
    own = getattr(model, f"encode_{modality}", None)
    encode, fixed = (own, {}) if own is not None else (model.encode, {"modality": modality})
    embeddings: Tensor = encode(items, convert_to_tensor=True, **fixed, **options).float()
    return embeddings


def owners_mean(vectors: Tensor, owners: Tensor, count: int) -> Tensor:
    """Return the mean (count, d) of the directions of each owner's vectors (n, d); ``owners`` (n,) count from 0."""
    sums = vectors.new_zeros(count, vectors.shape[1])
    directions = normalize(vectors, dim=-1)
    return sums.index_add_(0, owners, directions) / torch.bincount(owners, minlength=count)[:, None]
