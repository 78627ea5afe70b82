"""What all evaluators share: sentence-transformers' call signature, and results on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freezealign.files import write_json

Results = dict[str, Any]


class Evaluator:
    """Base of the evaluators.

    A subclass implements :meth:`evaluate`. Its results are flat: numbers under the metric's name, with ``_low`` and
    ``_high`` for the 95% bootstrap interval and ``_chance`` for the chance level, and ``protocol`` in words.

    Args:
        name: Put in front of every metric, and into the file's name.

    Attributes:
        greater_is_better: Whether more of the primary metric is better.
    """

    greater_is_better = True
    _primary: str

    def __init__(self, name: str = "") -> None:
        self.name = name

    @property
    def primary_metric(self) -> str:
        """Key of the metric that decides, as it stands in the results."""
        return prefixed(self.name, self._primary)

    @property
    def description(self) -> str:
        """The evaluator in words, for logs."""
        words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(self).__name__.removesuffix("Evaluator"))
        return f"{words} on {self.name}" if self.name else words

    def evaluate(self, model: Any) -> Results:
        """Return the results for ``model``, without prefix."""
        raise NotImplementedError

    def __call__(self, model: Any, output_path: str | Path | None = None, epoch: int = -1, steps: int = -1) -> Results:
        """Evaluate ``model``, note its scores for the model card, and write them as JSON if a folder is given.

        Args:
            model: Anything with ``encode_image`` and ``encode_text``.
            output_path: Folder for ``NAME.json``.
            epoch: When in training this is; -1 outside of it.
            steps: Likewise.
        """
        results = {prefixed(self.name, key): value for key, value in self.evaluate(model).items()}
        if hasattr(model, "model_card_data"):
            model.model_card_data.set_evaluation_metrics(self, results, epoch, steps)
        if output_path is not None:
            folder = Path(output_path)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / f"{self.name or type(self).__name__}.json", {"epoch": epoch, "steps": steps, **results})
        return results


def by_language(values: Any) -> dict[str, Any]:
    """Return ``values`` as a mapping from language; a plain list is one nameless language."""
    return dict(values) if isinstance(values, Mapping) else {"": values}


def prefixed(prefix: str, metric: str) -> str:
    """Return ``de_R@1`` for ``de`` and ``R@1``, and the metric alone if the prefix is empty."""
    return f"{prefix}_{metric}" if prefix else metric
