"""FitArguments and History: everything ``fit`` can be told, and what it tells."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from freezealign.inputs import Skipped

Schedule = Literal["auto", "paper"]
InitKind = Literal["random", "closed-form", "keep"]
LossKind = Literal["infonce", "sigmoid"]
Precision = Literal["no", "bf16", "fp16"]

NEUTRAL = ("output_dir", "save_every", "keep_checkpoints", "report_to", "show_progress_bar", "data_name")
"""Fields that do not change what is trained, so that a run may be resumed with other values."""
LEAST = (
    (0, ("epochs", "learning_rate", "final_learning_rate", "weight_decay", "structure_weight", "seed")),
    (1, ("encode_batch_size", "captions", "evaluate_every", "patience", "save_every", "keep_checkpoints")),
)
"""The smallest value of fields."""
KINDS = {"schedule": Schedule, "init": InitKind, "loss": LossKind, "precision": Precision}
"""Fields that are one of some names."""


@dataclass(frozen=True)
class FitArguments:
    """How to train the projectors. What is left ``None`` is chosen by the schedule, and the log says what and why.

    Args:
        schedule: ``auto`` chooses by the number of pairs; ``paper`` is the paper's training, whatever the data.
            See :mod:`freezealign.training.plan`.
        init: ``closed-form`` starts from regularised canonical correlation analysis (seconds; with few pairs it is
            better than any training, and ``epochs=0`` stops there). ``random`` and ``keep`` start from the weights
            there are: a new model's random ones, or those that a trained one is to be trained on from.
        epochs: Passes over the data; 0 only initialises.
        batch_size: Pairs a step, over all processes, each the other's negative; a DataLoader's own is kept.
        learning_rate: Peak of the schedule.
        final_learning_rate: Where the cosine ends.
        warmup: Share of all steps over which the learning rate rises linearly from 0.
        weight_decay: For weight matrices; norms, biases and the temperature have none.
        clip_norm: Largest norm of the gradient; ``None`` does not clip.
        loss: ``infonce``, or ``sigmoid`` (adds a learnable bias to the model's logit scale if it has none).
        global_negatives: ``False`` keeps negatives within each process, as the paper's released code does.
        captions: Captions of an item that are in a batch together, all positives of its image.
        structure_weight: Weight of the loss that keeps the frozen spaces' neighbourhoods ("STRUCTURE") within each
            process's part of the batch; for few pairs.
        weights: For several data sets, how often a pair of each is drawn in an epoch: 1 is once, 0.1 once in ten.
        class_names: Learn from the names of the classes too that the image encoder was trained to tell apart, one pair
            a class: its classifier's weights, as if a picture's, and the name. This is knowledge from labels, so the
            card says it; for few pairs of photographs it is worth many pairs. Needs pooled features.
        precision: ``bf16`` or ``fp16`` autocast; by default as ``accelerate launch`` says, else ``no``.
        seed: Order of the data, choice among several captions, dropout.
        cache_features: Compute frozen features once and reuse them in every epoch. ``False`` reads and encodes the data
            anew each time: for data that does not fit, or that is augmented differently in every epoch (in workers of a
            DataLoader, or with a generator of its own: torch's global one is shared with dropout).
        encode_batch_size: Pairs a forward pass of the frozen encoders when features are cached.
        evaluate_every: Steps between two calls of the evaluator; by default it is called after each epoch. It is always
            called at the end.
        keep_best: End with the weights of the best evaluation, by the evaluator's ``primary_metric``.
        patience: Stop after so many evaluations in a row without a new best one.
        output_dir: Folder for checkpoints. A run that was interrupted goes on there exactly where it was.
        save_every: Steps between two checkpoints; by default one after each epoch.
        keep_checkpoints: How many of the last checkpoints to keep.
        report_to: Trackers, by accelerate's names: ``("tensorboard",)``, ``("wandb",)``.
        strict: Raise at the first item that cannot be read instead of leaving its pair out.
        data_name: What the model card calls the data.
        show_progress_bar: Show progress for anything that takes longer than a second.
    """

    schedule: Schedule = "auto"
    init: InitKind | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    final_learning_rate: float = 1e-5
    warmup: float = 0.1
    weight_decay: float = 0.02
    clip_norm: float | None = 1.0
    loss: LossKind = "infonce"
    global_negatives: bool = True
    captions: int = 1
    structure_weight: float | None = None
    weights: tuple[float, ...] | None = None
    class_names: bool = False
    precision: Precision | None = None
    seed: int = 0
    cache_features: bool = True
    encode_batch_size: int = 32
    evaluate_every: int | None = None
    keep_best: bool = False
    patience: int | None = None
    output_dir: str | os.PathLike[str] | None = None
    save_every: int | None = None
    keep_checkpoints: int = 2
    report_to: tuple[str, ...] = ()
    strict: bool = False
    data_name: str = "unnamed pairs"
    show_progress_bar: bool = True

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            value = getattr(self, name)
            if value not in get_args(kind) and not (value is None and name in ("init", "precision")):
                raise ValueError(f"unknown {name} {value!r}; choose one of {get_args(kind)}.")
        for least, names in LEAST:
            for name in names:
                if (value := getattr(self, name)) is not None and not value >= least:
                    raise ValueError(f"{name} must be at least {least}, got {value}.")
        if self.batch_size is not None and self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}: a pair alone has no negatives.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, got {self.clip_norm}; None does not clip.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of all steps, in [0, 1), got {self.warmup}.")
        if self.weights is not None and not all(weight > 0 for weight in self.weights):
            raise ValueError(f"weights must be above 0, got {self.weights}; leave out a data set instead.")

    def identity(self) -> dict[str, Any]:
        """Return what a run depends on, as JSON."""
        values = {key: value for key, value in vars(self).items() if key not in NEUTRAL}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


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

    @property
    def losses(self) -> list[float]:
        """The loss of every step."""
        return [step["loss"] for step in self.steps]
