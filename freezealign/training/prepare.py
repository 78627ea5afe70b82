"""From whatever ``fit`` was given to training batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from freezealign.features import FeatureStore
from freezealign.training.arguments import FitArguments
from freezealign.training.batches import Batches, CachedBatches, OnlineBatches
from freezealign.training.closed_form import check_recipes, initialize_closed_form

if TYPE_CHECKING:
    from freezealign.model import FreezeAlign


def make_batches(model: FreezeAlign, data: Any, arguments: FitArguments) -> Batches:
    """Return batches of cached features, extracting them first where needed, or batches read on the way.

    Raises:
        ValueError: If the model cannot start as ``arguments.init`` says; known before any data is read.
    """
    if arguments.init == "closed-form":
        check_recipes(model)
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


def initialize(model: FreezeAlign, batches: Batches, arguments: FitArguments) -> None:
    """Set the projectors' weights as ``arguments.init`` says.

    Raises:
        ValueError: If the closed form is asked for without cached features, which it has to read before training.
    """
    if arguments.init == "random":
        return
    if not isinstance(batches, CachedBatches):
        raise ValueError("init='closed-form' needs the features of all pairs: leave cache_features=True.")
    initialize_closed_form(model, batches.store, arguments.seed)
