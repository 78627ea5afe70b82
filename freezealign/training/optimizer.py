"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from freezealign.training.arguments import FitArguments


def make_optimizer(model: nn.Module, arguments: FitArguments) -> Optimizer:
    """Return AdamW over what is trainable: weight decay on matrices, none on norms, biases and the temperature.

    Its learning rate is set before every step; see :func:`learning_rate`.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: Iterable[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": arguments.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=0.0)


def learning_rate(step: int, steps: int, arguments: FitArguments) -> float:
    """Return the rate of one step of ``steps``, from 0: a linear rise from near 0, then a cosine down to the end."""
    assert arguments.learning_rate is not None
    peak, end = arguments.learning_rate, min(arguments.learning_rate, arguments.final_learning_rate)
    warmup = max(1, round(steps * arguments.warmup))
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return end + (peak - end) * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
