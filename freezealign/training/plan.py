"""What suits the number of pairs at hand: a recipe for the blocks, and a plan for training them, with the reasons."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from freezealign.features import FeatureStore
from freezealign.space import Space
from freezealign.training.arguments import FitArguments
from freezealign.training.closed_form import closed_form_obstacle

logger = logging.getLogger(__name__)

KERNEL, FEW, MANY = 3_000, 10_000, 100_000
"""Numbers of pairs up to which a kernel, a linear closed form, and training from one suit.

The first is measured on 500 to 1,500 pairs (docs/recipes.md), the others are the literature's.
"""
NEEDS_CACHE = "it needs the features of all pairs: leave cache_features=True"
PAPER: dict[str, Any] = {
    "init": "random",
    "epochs": 20,
    "batch_size": 512,
    "learning_rate": 1e-3,
    "structure_weight": 0.0,
}


class Plan(NamedTuple):
    """Arguments with nothing left open, and the reasons for what was chosen."""

    arguments: FitArguments
    reasons: str


def suits_kernel(space: Space, pairs: int | None, arguments: FitArguments) -> bool:
    """Whether blocks are to be chosen, and there are so few pairs that a kernel suits them."""
    is_open = space.recipe == "auto" and arguments.schedule == "auto" and arguments.init in (None, "closed-form")
    return is_open and pairs is not None and pairs < KERNEL and closed_form_obstacle(space, "kernel") is None


def choose_recipe(space: Space, stores: Sequence[FeatureStore], arguments: FitArguments) -> str | None:
    """Return the blocks that suit the features, for a space that leaves them open; ``None`` to keep those there are.

    Pooled features have no tokens for projectors to read.
    """
    if space.recipe != "auto" or not stores:
        return None
    if suits_kernel(space, sum(map(len, stores)), arguments):
        return "kernel"
    return "pooled" if any(store.level == "pooled" for store in stores) else None


def make_plan(space: Space, recipe: str | None, pairs: int | None, cached: bool, arguments: FitArguments) -> Plan:
    """Fill in what the user left open, for a space that is going to have the blocks of ``recipe`` if that is one.

    ``pairs`` is ``None`` if nobody knows how many there are; ``cached`` is whether their features are at hand already.
    """
    known = f"{pairs:,} pairs" if pairs is not None else "an unknown number of pairs"
    obstacle = closed_form_obstacle(space, recipe) if cached else NEEDS_CACHE
    if arguments.init in ("random", "keep"):
        obstacle = f"init='{arguments.init}' was asked for"
    chosen = PAPER
    if arguments.schedule == "paper":
        reasons = "the paper's training, as schedule='paper' asks"
    elif pairs is None or pairs >= MANY:
        chosen = PAPER if pairs is None else {**PAPER, "batch_size": 8192}
        reasons = f"{known}: contrastive training in large batches wins where data is plenty"
    elif obstacle:
        reasons = f"{known} would suit the closed form, but {obstacle}"
    elif pairs < FEW:
        chosen = {**PAPER, "init": "closed-form", "epochs": 0}
        reasons = f"{known}: so few that training after the closed form adds nothing"
    else:
        chosen = {
            "init": "closed-form",
            "epochs": 10,
            "batch_size": 4096,
            "learning_rate": 3e-4,
            "structure_weight": 1.0,
        }
        reasons = f"{known}: training starts from the closed form and keeps the frozen spaces' neighbourhoods"
    open_fields = {key: value for key, value in chosen.items() if getattr(arguments, key) is None}
    if space.is_trained and open_fields.get("init") == "closed-form":
        reasons += "; it replaces the weights this model was trained to, where init='keep' would train on from them"
        logger.warning(reasons)
    settings = ", ".join(f"{key}={value}" for key, value in open_fields.items())
    return Plan(replace(arguments, **open_fields), f"{reasons}: {settings or 'everything was given'}")
