"""The training loop: projectors and temperature learn, encoders never do."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from freezealign.features import Skipped
from freezealign.prefetch import to_device
from freezealign.training.arguments import FitArguments
from freezealign.training.batches import Batches
from freezealign.training.losses import ContrastiveLoss

if TYPE_CHECKING:
    from freezealign.model import FreezeAlign

logger = logging.getLogger(__name__)


@dataclass
class History:
    """What happened during ``fit``.

    Args:
        steps: One dict a step: ``step``, ``epoch``, ``loss``, ``temperature``, ``learning_rate``.
        evaluations: One dict an evaluation: ``step``, ``epoch``, and the evaluator's results.
        skipped: Items left out, with the reason.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def record(self, **step: float) -> None:
        """Add a step."""
        self.steps.append(step)

    @property
    def losses(self) -> list[float]:
        """The loss of every step."""
        return [step["loss"] for step in self.steps]


def train(
    model: FreezeAlign, batches: Batches, arguments: FitArguments, evaluator: Callable[..., Any] | None = None
) -> History:
    """Train the projectors of ``model`` and return what happened.

    Raises:
        ValueError: If no pair of an epoch can be read.
        FloatingPointError: If the loss is NaN or infinite; the message names the step and what to try.
    """
    if arguments.epochs == 0:
        evaluations = [] if evaluator is None else [evaluate(model, evaluator, 0, 0)]
        return History([], evaluations, batches.skipped)
    try:
        with seeded(arguments.seed, model.device):
            return _run_epochs(model, batches, arguments, evaluator)
    finally:
        model.eval()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from torch's generators as ``seed`` says inside the block, and leave them as they were after it."""
    with untouched_generators(device):
        torch.manual_seed(seed)
        yield


def untouched_generators(device: torch.device) -> AbstractContextManager[None]:
    """Leave torch's generators as they were after the block."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def check_trainable(model: FreezeAlign) -> None:
    """Raise a ``ValueError`` if the model has not exactly two towers, or nothing to train."""
    if len(model.towers) != 2:
        raise ValueError(f"fit aligns two towers, but this model has {list(model.towers)}.")
    if not any(parameter.requires_grad for parameter in model.towers.parameters()):
        raise ValueError("there is nothing to train: every block is an identity or frozen.")


def _run_epochs(
    model: FreezeAlign, batches: Batches, arguments: FitArguments, evaluator: Callable[..., Any] | None
) -> History:
    from tqdm.auto import tqdm

    total = len(batches) * arguments.epochs
    optimizer = make_optimizer(model, arguments)
    scheduler = make_scheduler(optimizer, total, arguments)
    history, loss_function = History(), ContrastiveLoss()
    with tqdm(total=total, desc="Training", unit="step", disable=not arguments.show_progress_bar, delay=1) as bar:
        for epoch in range(1, arguments.epochs + 1):
            model.train()
            for batch in batches.epoch(epoch):
                step, rate = len(history.steps) + 1, float(scheduler.get_last_lr()[0])
                loss = train_step(model, batch, loss_function, optimizer, step)
                scheduler.step()
                temperature = model.logit_scale.temperature.item()
                history.record(step=step, epoch=epoch, loss=loss, temperature=temperature, learning_rate=rate)
                bar.update()
                bar.set_postfix(epoch=epoch, loss=f"{loss:.3f}", temperature=f"{temperature:.3f}")
            history.skipped = batches.skipped
            if not history.steps:
                reasons = "; ".join(f"pair {entry.index}: {entry.reason}" for entry in batches.skipped[:3])
                raise ValueError(f"no batch has two pairs that can be read, and one alone has no negatives. {reasons}")
            if evaluator is not None and (epoch % arguments.evaluate_every == 0 or epoch == arguments.epochs):
                history.evaluations.append(evaluate(model, evaluator, epoch, len(history.steps)))
    return history


def train_step(
    model: FreezeAlign, batch: dict[str, Any], loss_function: nn.Module, optimizer: Optimizer, step: int
) -> float:
    """Take one optimiser step and return its loss."""
    embeddings = model({key: to_device(features, model.device) for key, features in batch.items()})
    loss = loss_function(*embeddings.values(), model.logit_scale)
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the loss is {value} at step {step}. Try a lower learning_rate or a longer warmup, "
            "or look for NaN in the data."
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.logit_scale.clamp_()
    return float(value)


def evaluate(model: FreezeAlign, evaluator: Callable[..., Any], epoch: int, step: int) -> dict[str, Any]:
    """Call an evaluator as sentence-transformers does, and return its results with epoch and step."""
    model.eval()
    with untouched_generators(model.device):
        results = evaluator(model, output_path=None, epoch=epoch, steps=step)
    results = results if isinstance(results, dict) else {"score": results}
    logger.info("epoch %d: %s", epoch, results)
    return {"step": step, "epoch": epoch, **results}


def make_optimizer(model: nn.Module, arguments: FitArguments) -> Optimizer:
    """Return AdamW over what is trainable: weight decay on matrices, none on norms, biases and the temperature."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: Iterable[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": arguments.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=arguments.learning_rate)


def make_scheduler(optimizer: Optimizer, steps: int, arguments: FitArguments) -> LRScheduler:
    """Return a linear warm-up from near 0 followed by a cosine down to the final learning rate."""
    warmup = max(1, round(steps * arguments.warmup))
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    fall = CosineAnnealingLR(optimizer, max(1, steps - warmup), eta_min=arguments.final_learning_rate)
    return SequentialLR(optimizer, [rise, fall], milestones=[warmup])
