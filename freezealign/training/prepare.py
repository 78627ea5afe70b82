"""From whatever ``fit`` was given to a run of training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from freezealign.data.pairs import count_pairs
from freezealign.features import FeatureStore
from freezealign.tower import origins
from freezealign.training.arguments import FitArguments
from freezealign.training.batches import Batches, CachedBatches, OnlineBatches
from freezealign.training.closed_form import initialize_closed_form
from freezealign.training.history import History
from freezealign.training.plan import Plan, check_closed_form, make_plan
from freezealign.training.trainer import Trainer, check_trainable, seeded

if TYPE_CHECKING:
    from accelerate import Accelerator

    from freezealign.model import FreezeAlign

logger = logging.getLogger(__name__)


def run_fit(
    model: FreezeAlign, data: Any, arguments: FitArguments, evaluator: Callable[..., Any] | None
) -> tuple[FitArguments, History, int | None]:
    """Do what :meth:`freezealign.FreezeAlign.fit` says; return what was chosen, what happened, and how many pairs."""
    check_trainable(model)
    if arguments.init == "closed-form":
        check_closed_form(model, arguments.cache_features)
    accelerator = make_accelerator(model, arguments)
    if arguments.loss == "sigmoid":
        model.logit_scale.add_bias_()
    with seeded(arguments.seed, model.device):
        stores = find_stores(model, data, arguments)
    plan, batches = make_batches(model, data, stores, arguments, accelerator)
    logger.info(plan.reasons)
    trainer = Trainer(model, batches, plan, accelerator, evaluator)
    if not trainer.restore() and plan.arguments.init == "closed-form":
        assert isinstance(batches, CachedBatches)
        initialize_closed_form(model, stores, arguments.weights, arguments.seed)
    return plan.arguments, trainer.run(), batches.num_pairs


def make_accelerator(model: FreezeAlign, arguments: FitArguments) -> Accelerator:
    """Return accelerate's view of the processes, and move the model to this one's device if there are several."""
    from accelerate import Accelerator

    folder = None if arguments.output_dir is None else str(arguments.output_dir)
    on_cpu = model.device.type == "cpu"
    accelerator = Accelerator(cpu=on_cpu, log_with=list(arguments.report_to) or None, project_dir=folder or ".")
    if accelerator.num_processes > 1:
        model.to(accelerator.device)
    return accelerator


def find_stores(model: FreezeAlign, data: Any, arguments: FitArguments) -> list[FeatureStore]:
    """Return the stores among ``data``, or the frozen features of it; nothing if they are not to be cached.

    Raises:
        ValueError: If a store was made by other encoders than the model's.
    """
    if isinstance(data, FeatureStore):
        data = [data]
    if isinstance(data, (list, tuple)) and data and all(isinstance(store, FeatureStore) for store in data):
        for store in data:
            store.check(origins({name: model.tower(name) for name in model.towers}, store.level))
        return list(data)
    if not arguments.cache_features:
        return []
    return [
        model.extract_features(
            data,
            batch_size=arguments.encode_batch_size,
            strict=arguments.strict,
            show_progress_bar=arguments.show_progress_bar,
        )
    ]


def make_batches(
    model: FreezeAlign, data: Any, stores: Sequence[FeatureStore], arguments: FitArguments, accelerator: Accelerator
) -> tuple[Plan, Batches]:
    """Return how to train, and on what.

    Raises:
        ValueError: If weights do not fit the data sets, or several processes would have to read the same data.
    """
    if arguments.weights is not None and len(arguments.weights) != len(stores):
        raise ValueError(f"{len(arguments.weights)} weights for {len(stores)} feature stores.")
    if arguments.batch_size is None and isinstance(data, DataLoader):
        arguments = replace(arguments, batch_size=data.batch_size)
    if stores:
        plan = make_plan(model, sum(map(len, stores)), True, arguments)
        options = (arguments.captions, accelerator.process_index, accelerator.num_processes)
        assert plan.arguments.batch_size is not None
        return plan, CachedBatches(stores, plan.arguments.batch_size, arguments.seed, arguments.weights, *options)
    if accelerator.num_processes > 1:
        raise ValueError("with several processes, extract the features first: model.extract_features(data, path).")
    plan = make_plan(model, count_pairs(data, list(model.towers)), False, arguments)
    assert plan.arguments.batch_size is not None
    return plan, OnlineBatches(data, model.encoders, plan.arguments.batch_size, arguments.seed, arguments.strict)
