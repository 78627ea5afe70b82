"""Where training batches come from: cached features, or inputs read and encoded on the way."""

from __future__ import annotations

from freezealign.training.batches.base import Batches, TrainingBatch
from freezealign.training.batches.cached import CachedBatches
from freezealign.training.batches.online import OnlineBatches

__all__ = ["Batches", "CachedBatches", "OnlineBatches", "TrainingBatch"]
