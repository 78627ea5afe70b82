"""History: what happened during ``fit``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from freezealign.inputs import Skipped


@dataclass
class History:
    """What happened during ``fit``.

    Args:
        steps: One dict a step: ``step``, ``epoch``, ``loss``, ``temperature``, ``learning_rate``.
        evaluations: One dict an evaluation: ``step``, ``epoch``, and the evaluator's results.
        skipped: Items left out, with the reason.
        plan: What the schedule chose, and why.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    plan: str = ""

    def record(self, **step: float) -> None:
        """Add a step."""
        self.steps.append(step)

    @property
    def losses(self) -> list[float]:
        """The loss of every step."""
        return [step["loss"] for step in self.steps]
