"""From whatever ``fit`` was given to a run of training."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from freezealign.data.pairs import count_pairs
from freezealign.data.sources import open_pairs
from freezealign.features import FeatureStore, Level
from freezealign.training.arguments import FitArguments
from freezealign.training.batches import Batches, CachedBatches, OnlineBatches
from freezealign.training.closed_form import initialize_closed_form
from freezealign.training.history import History
from freezealign.training.plan import Plan, check_closed_form, choose_recipe, make_plan
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
    accelerator = make_accelerator(model, arguments)
    if arguments.loss == "sigmoid":
        model.logit_scale.add_bias_()
    data = open_pairs(data) if isinstance(data, (str, Path)) else data
    stores = given_stores(data)
    pairs = sum(map(len, stores)) if stores else count_pairs(data, list(model.towers))
    recipe = choose_recipe(model, pairs, stores, arguments)
    if arguments.init == "closed-form" and recipe is None:
        check_closed_form(model, arguments.cache_features)
    with seeded(arguments.seed, model.device):
        if not stores and arguments.cache_features:
            stores = [extract_store(model, data, arguments, None if recipe is None else "pooled")]
            recipe = choose_recipe(model, len(stores[0]), stores, arguments)
        for store in stores:
            store.check(model.origins(store.level))
        if recipe is not None:
            model.set_recipe(recipe)
    plan, batches = make_batches(model, data, stores, arguments, accelerator)
    logger.info(plan.reasons)
    if plan.arguments.init == "closed-form":
        initialize_closed_form(model, stores, arguments.weights, arguments.seed)
    trainer = Trainer(model, batches, plan, accelerator, evaluator)
    trainer.restore()
    return plan.arguments, trainer.run(), batches.num_pairs


def given_stores(data: Any) -> list[FeatureStore]:
    """Return the feature stores that ``data`` is, or none if it is something else."""
    data = [data] if isinstance(data, FeatureStore) else data
    is_stores = isinstance(data, (list, tuple)) and data and all(isinstance(part, FeatureStore) for part in data)
    return list(data) if is_stores else []


def extract_store(model: FreezeAlign, data: Any, arguments: FitArguments, level: Level | None) -> FeatureStore:
    """Return the frozen features of the data, in memory."""
    return model.extract_features(
        data,
        level=level,
        batch_size=arguments.encode_batch_size,
        strict=arguments.strict,
        show_progress_bar=arguments.show_progress_bar,
    )


def make_accelerator(model: FreezeAlign, arguments: FitArguments) -> Accelerator:
    """Return accelerate's view of the processes, and move the model to this one's device if there are several."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    folder = None if arguments.output_dir is None else str(arguments.output_dir)
    # Accelerate's device is chosen once a process and for good, and does not matter to a process that is alone.
    on_cpu = model.device.type == "cpu" and int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(
        cpu=on_cpu,
        log_with=list(arguments.report_to) or None,
        project_dir=folder or ".",
        # A tower may hold what its pooling does not read, and only one of the losses reads the bias.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.num_processes > 1:
        model.to(accelerator.device)
    return accelerator


def make_batches(
    model: FreezeAlign, data: Any, stores: Sequence[FeatureStore], arguments: FitArguments, accelerator: Accelerator
) -> tuple[Plan, Batches]:
    """Return how to train, and on what.

    Raises:
        ValueError: If weights do not fit the data sets, or several processes would have to read the same data.
    """
    if arguments.weights is not None and len(arguments.weights) != len(stores):
        raise ValueError(f"{len(arguments.weights)} weights for {len(stores)} feature stores.")
    if arguments.captions > 1 and not stores:
        raise ValueError(f"captions={arguments.captions} needs cached features: leave cache_features=True.")
    if isinstance(data, DataLoader):
        size = data.batch_size if arguments.batch_size is None else arguments.batch_size
        if size != data.batch_size and not stores:
            raise ValueError(f"batch_size={size}, but without a cache the DataLoader keeps its own {data.batch_size}.")
        arguments = replace(arguments, batch_size=size)
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
