"""``fit``: store → recipe → plan → initialisation → training. Each is decided once, in this order, and nothing before.

Only once all is decided is anything of the space changed.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import DataLoader

from freezealign.data.pairs import count_pairs
from freezealign.features import FeatureStore
from freezealign.features.folder import StoreFolder
from freezealign.features.job import extract_features
from freezealign.files import claim, exclusive
from freezealign.space import Space
from freezealign.training.arguments import FitArguments
from freezealign.training.batches import Batches, CachedBatches, OnlineBatches
from freezealign.training.checkpoints import trained_parameters
from freezealign.training.closed_form import closed_form_obstacle, initialize_closed_form
from freezealign.training.history import History
from freezealign.training.plan import Plan, choose_recipe, make_plan, suits_kernel
from freezealign.training.trainer import Trainer, check_trainable, seeded

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0


class Fitted(NamedTuple):
    """What was chosen, what happened, and how many pairs there were, where that is known."""

    arguments: FitArguments
    history: History
    pairs: int | None


def fit(space: Space, data: Any, arguments: FitArguments, evaluator: Callable[..., Any] | None = None) -> Fitted:
    """Do what :meth:`freezealign.FreezeAlign.fit` says."""
    check_trainable(space)
    accelerator = make_accelerator(space, arguments)
    arguments = settle(space, data, arguments, accelerator.num_processes)
    with seeded(arguments.seed, space.device):
        stores = find_stores(space, data, arguments, accelerator)
        recipe = choose_recipe(space, stores, arguments)
        plan = make_plan(space, recipe, _number(data, stores, space), bool(stores), arguments)
        batches = make_batches(space, data, stores, plan.arguments, accelerator)
    with own_folder(identity(space, recipe, batches, plan.arguments, accelerator), plan.arguments, accelerator):
        logger.info(plan.reasons)
        with seeded(arguments.seed, space.device):
            initialize(space, recipe, stores, plan)
        history = Trainer(space, batches, plan, accelerator, evaluator).run()
    return Fitted(plan.arguments, history, batches.num_pairs)


def settle(space: Space, data: Any, arguments: FitArguments, processes: int) -> FitArguments:
    """Return the arguments with what the data decides, and check that they go together with it.

    Raises:
        ValueError: If they do not.
    """
    stores = given_stores(data)
    cached = bool(stores) or arguments.cache_features
    if arguments.weights is not None and len(arguments.weights) != max(len(stores), int(cached)):
        raise ValueError(f"{len(arguments.weights)} weights for {len(stores)} feature stores.")
    if arguments.captions > 1 and not cached:
        raise ValueError(f"captions={arguments.captions} needs cached features: leave cache_features=True.")
    if processes > 1 and not cached:
        raise ValueError("with several processes, extract the features first: model.extract_features(data, path).")
    if arguments.init == "closed-form":
        obstacle = (
            closed_form_obstacle(space) if cached else "it needs the features of all pairs: leave cache_features=True"
        )
        if obstacle:
            raise ValueError(f"init='closed-form' cannot be used: {obstacle}.")
    if not isinstance(data, DataLoader):
        return arguments
    size = data.batch_size if arguments.batch_size is None else arguments.batch_size
    if size != data.batch_size and not cached:
        raise ValueError(f"batch_size={size}, but without a cache the DataLoader keeps its own {data.batch_size}.")
    return replace(arguments, batch_size=size)


# Store


def given_stores(data: Any) -> list[FeatureStore]:
    """Return the feature stores that ``data`` is, or none if it is something else."""
    data = [data] if isinstance(data, FeatureStore) else data
    is_stores = isinstance(data, (list, tuple)) and data and all(isinstance(part, FeatureStore) for part in data)
    return list(data) if is_stores else []


def find_stores(space: Space, data: Any, arguments: FitArguments, accelerator: Accelerator) -> list[FeatureStore]:
    """Return the frozen features to train on: those given, or the data's; none if it is to be encoded in each epoch.

    Raises:
        ValueError: If they are of other encoders.
    """
    stores = given_stores(data)
    if not stores and arguments.cache_features:
        stores = [extract(space, data, arguments, accelerator)]
    for store in stores:
        store.check(space.origins(store.level))
    return stores


def extract(space: Space, data: Any, arguments: FitArguments, accelerator: Accelerator) -> FeatureStore:
    """Return the frozen features of the data in memory; of several processes, the first extracts them for all."""
    few = space.recipe == "auto" and suits_kernel(count_pairs(data, space.modalities), arguments)
    extraction = space.extraction(
        "pooled" if few else None, dtype="float32", batch_size=arguments.encode_batch_size, strict=arguments.strict
    )

    def run(path: Path | None) -> FeatureStore:
        return extract_features(data, extraction, space.device, path, True, "local", arguments.show_progress_bar)

    if accelerator.num_processes == 1:
        return run(None)
    with shared_folder(accelerator) as folder:
        if accelerator.is_main_process:
            run(folder)
        while not (StoreFolder(folder).exists and StoreFolder(folder).complete):
            time.sleep(POLL_SECONDS)  # not a barrier, which gives up after minutes
        return FeatureStore.open(folder).resident()


@contextmanager
def shared_folder(accelerator: Accelerator) -> Iterator[Path]:
    """Give all processes of a machine one folder, and remove it when all are done with it."""
    from accelerate.utils import broadcast_object_list

    made = [tempfile.mkdtemp(prefix="freezealign-") if accelerator.is_main_process else None]
    root = Path(broadcast_object_list(made)[0])
    try:
        yield root / "features"
        accelerator.wait_for_everyone()
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(root, ignore_errors=True)


def _number(data: Any, stores: Sequence[FeatureStore], space: Space) -> int | None:
    return sum(map(len, stores)) if stores else count_pairs(data, space.modalities)


# Plan: what to train on


def make_batches(
    space: Space, data: Any, stores: Sequence[FeatureStore], arguments: FitArguments, accelerator: Accelerator
) -> Batches:
    """Return what the steps of training are given."""
    assert arguments.batch_size is not None
    if not stores:
        return OnlineBatches(data, space.encoders, arguments.batch_size, arguments.seed, arguments.strict)
    ranks = (accelerator.process_index, accelerator.num_processes)
    return CachedBatches(stores, arguments.batch_size, arguments.seed, arguments.weights, arguments.captions, *ranks)


def identity(
    space: Space, recipe: str | None, batches: Batches, arguments: FitArguments, accelerator: Accelerator
) -> dict[str, Any]:
    """Return what a run depends on, as JSON."""
    encoders = {name: encoder.fingerprint for name, encoder in space.encoders.items()}
    shapes = {f"the shape of {name}": list(tensor.shape) for name, tensor in trained_parameters(space).items()}
    facts = {
        "pairs": batches.num_pairs,
        "processes": accelerator.num_processes,
        "autocast": arguments.precision or accelerator.mixed_precision,
        "recipe": recipe,
    }
    return {**arguments.identity(), **facts, **encoders, **shapes}


@contextmanager
def own_folder(run: dict[str, Any], arguments: FitArguments, accelerator: Accelerator) -> Iterator[None]:
    """Begin a run in its folder of checkpoints, or go on with it there, and keep every other run out meanwhile.

    The first process answers for all.
    """
    if arguments.output_dir is None:
        yield
        return
    folder = Path(arguments.output_dir, "checkpoints")
    with exclusive(folder) if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            claim(folder / "run.json", run, "training run")
        accelerator.wait_for_everyone()
        yield


# Initialisation


def initialize(space: Space, recipe: str | None, stores: Sequence[FeatureStore], plan: Plan) -> None:
    """Give the space the blocks and the weights that training starts from."""
    if recipe is not None:
        space.set_recipe(recipe)
    elif space.recipe == "auto":
        space.recipe = "token"
    if plan.arguments.loss == "sigmoid":
        space.logit_scale.add_bias_()
    if plan.arguments.init == "closed-form":
        initialize_closed_form(space, stores, plan.arguments.weights, plan.arguments.seed)


# Training


def make_accelerator(space: Space, arguments: FitArguments) -> Accelerator:
    """Return accelerate's view of the processes, and move the space to this one's device if there are several."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    folder = None if arguments.output_dir is None else str(arguments.output_dir)
    # Accelerate's device is chosen once a process and for good, and does not matter to a process that is alone.
    on_cpu = space.device.type == "cpu" and int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(
        cpu=on_cpu,
        log_with=list(arguments.report_to) or None,
        project_dir=folder or ".",
        # A tower may hold what its pooling does not read, and only one of the losses reads the bias.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.num_processes > 1:
        space.to(accelerator.device)
    return accelerator
