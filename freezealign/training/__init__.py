"""Training of projectors on frozen features."""

from __future__ import annotations

from freezealign.training.arguments import FitArguments
from freezealign.training.losses import ContrastiveLoss
from freezealign.training.trainer import History, train

__all__ = ["ContrastiveLoss", "FitArguments", "History", "train"]
