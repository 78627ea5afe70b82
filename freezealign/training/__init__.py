"""Training of projectors on frozen features."""

from __future__ import annotations

from freezealign.training.arguments import FitArguments, History
from freezealign.training.losses import ContrastiveLoss, SigmoidLoss

__all__ = ["ContrastiveLoss", "FitArguments", "History", "SigmoidLoss"]
