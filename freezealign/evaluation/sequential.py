"""Several evaluators as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freezealign.evaluation.base import Evaluator, Results


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
