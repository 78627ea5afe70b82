"""From whatever ``fit`` was given to training batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from freezealign.features import FeatureStore
from freezealign.training.arguments import FitArguments
from freezealign.training.batches import Batches, CachedBatches, OnlineBatches

if TYPE_CHECKING:
    from freezealign.model import FreezeAlign


def make_batches(model: FreezeAlign, data: Any, arguments: FitArguments) -> Batches:
    """Return batches of cached features, extracting them first where needed, or batches read on the way."""
    batch_size = arguments.batch_size
    if batch_size is None and isinstance(data, DataLoader):
        batch_size = data.batch_size
    if isinstance(data, FeatureStore):
        data.check({name: encoder.fingerprint for name, encoder in model.encoders.items()})
        return CachedBatches(data, batch_size, arguments.seed)
    if not arguments.cache_features:
        return OnlineBatches(data, model.encoders, batch_size, arguments.seed, arguments.strict)
    store = model.extract_features(
        data,
        batch_size=arguments.encode_batch_size,
        strict=arguments.strict,
        show_progress_bar=arguments.show_progress_bar,
    )
    return CachedBatches(store, batch_size, arguments.seed)
