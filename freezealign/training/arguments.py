"""FitArguments: everything ``fit`` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

InitKind = Literal["random", "closed-form"]


@dataclass(frozen=True)
class FitArguments:
    """How to train the projectors. The defaults are the paper's where it states one.

    Args:
        init: ``random`` keeps the projectors as they are; ``closed-form`` starts from regularised canonical correlation
            analysis (seconds; with few pairs it is better than any training, so ``epochs=0`` is a sensible choice).
        epochs: Passes over the data; 0 only initialises.
        batch_size: Pairs a step, each the other's negative; by default a DataLoader's own, else 512.
        learning_rate: Peak of the schedule.
        final_learning_rate: Where the cosine ends.
        warmup: Share of all steps over which the learning rate rises linearly from 0.
        weight_decay: For weight matrices; norms, biases and the temperature have none.
        seed: Order of the data, choice among several captions, dropout.
        cache_features: Compute frozen features once and reuse them in every epoch. ``False`` reads and encodes the data
            anew each time: for data that does not fit, or that is augmented differently in every epoch (in workers of a
            DataLoader, or with a generator of its own: torch's global one is shared with dropout).
        encode_batch_size: Pairs a forward pass of the frozen encoders when features are cached.
        evaluate_every: Epochs between two calls of the evaluator; it is always called at the end.
        strict: Raise at the first item that cannot be read instead of leaving its pair out.
        data_name: What the model card calls the data.
        show_progress_bar: Show progress for anything that takes longer than a second.
    """

    init: InitKind = "random"
    epochs: int = 20
    batch_size: int | None = None
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup: float = 0.1
    weight_decay: float = 0.02
    seed: int = 0
    cache_features: bool = True
    encode_batch_size: int = 32
    evaluate_every: int = 1
    strict: bool = False
    data_name: str = "unnamed pairs"
    show_progress_bar: bool = True

    def __post_init__(self) -> None:
        if self.init not in get_args(InitKind):
            raise ValueError(f"unknown init {self.init!r}; choose one of {get_args(InitKind)}.")
        if self.epochs < 0:
            raise ValueError(f"epochs must not be negative, got {self.epochs}.")
        for name in ("encode_batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.batch_size is not None and self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}: a pair alone has no negatives.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of all steps, in [0, 1), got {self.warmup}.")
