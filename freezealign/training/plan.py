"""Plan: what a recipe chooses for the number of pairs at hand, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from freezealign.training.arguments import FitArguments
from freezealign.training.closed_form import closed_form_obstacle

if TYPE_CHECKING:
    from freezealign.features import FeatureStore
    from freezealign.model import FreezeAlign

KERNEL, FEW, MANY = 3_000, 10_000, 100_000
"""Numbers of pairs up to which a kernel, a linear closed form, and training from one suit.

The first is measured on 500 to 1,500 pairs (docs/recipes.md), the others are the literature's.
"""
PAPER: dict[str, Any] = {
    "init": "random",
    "epochs": 20,
    "batch_size": 512,
    "learning_rate": 1e-3,
    "structure_weight": 0.0,
}


@dataclass(frozen=True)
class Plan:
    """Arguments with nothing left open, and the reasons for what was chosen."""

    arguments: FitArguments
    reasons: str


def make_plan(model: FreezeAlign, pairs: int | None, cached: bool, arguments: FitArguments) -> Plan:
    """Fill in what the user left open.

    Args:
        model: What is trained.
        pairs: How many there are; ``None`` if nobody knows.
        cached: Whether frozen features are at hand before training.
        arguments: What the user asked for; nothing of it is changed.
    """
    if arguments.recipe == "paper":
        chosen, reasons = PAPER, "the paper's training, as recipe='paper' asks"
    else:
        obstacle = "init='random' was asked for" if arguments.init == "random" else _obstacle(model, cached)
        chosen, reasons = _automatic(pairs, obstacle)
    open_fields = {key: value for key, value in chosen.items() if getattr(arguments, key) is None}
    settings = ", ".join(f"{key}={value}" for key, value in open_fields.items())
    return Plan(replace(arguments, **open_fields), f"{reasons}: {settings or 'everything was given'}")


def choose_recipe(
    model: FreezeAlign, pairs: int | None, stores: Sequence[FeatureStore], arguments: FitArguments
) -> str | None:
    """Return the blocks that suit the data, for a model that leaves them to ``fit``.

    Args:
        model: Its blocks may be chosen as long as it is untrained and was built by name alone.
        pairs: How many there are; ``None`` while nobody knows.
        stores: Their features, where they are at hand; pooled ones have no tokens for projectors to read.
        arguments: What the user asked for.

    Returns:
        A recipe; ``None`` to keep the blocks there are.
    """
    if not model.open_blocks:
        return None
    closed_form = arguments.recipe == "auto" and arguments.init != "random" and arguments.cache_features
    if closed_form and pairs is not None and pairs < KERNEL:
        return "kernel"
    return "pooled" if any(store.level == "pooled" for store in stores) else None


def check_closed_form(model: FreezeAlign, cached: bool) -> None:
    """Raise a ``ValueError`` that says why, if the closed form cannot be computed."""
    if obstacle := _obstacle(model, cached):
        raise ValueError(f"init='closed-form' cannot be used: {obstacle}.")


def _obstacle(model: FreezeAlign, cached: bool) -> str | None:
    return closed_form_obstacle(model) if cached else "it needs the features of all pairs: leave cache_features=True"


def _automatic(pairs: int | None, obstacle: str | None) -> tuple[dict[str, Any], str]:
    """Return what suits a number of pairs, and why."""
    known = f"{pairs:,} pairs" if pairs is not None else "an unknown number of pairs"
    if pairs is None or pairs >= MANY:
        large = {"batch_size": 8192, "epochs": 20} if pairs is not None else {}
        return {**PAPER, **large}, f"{known}: contrastive training in large batches wins where data is plenty"
    if obstacle:
        return PAPER, f"{known} would suit the closed form, but {obstacle}"
    if pairs < FEW:
        chosen = {**PAPER, "init": "closed-form", "epochs": 0}
        return chosen, f"{known}: so few that training after the closed form adds nothing"
    chosen = {"init": "closed-form", "epochs": 10, "batch_size": 4096, "learning_rate": 3e-4, "structure_weight": 1.0}
    return chosen, f"{known}: training starts from the closed form and keeps the frozen spaces' neighbourhoods"
