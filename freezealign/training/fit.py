"""``fit``: store → recipe → plan → initialisation → training. Each is decided once, in this order, and nothing before.

Only once all is decided is anything of the space changed.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from freezealign.data.reader import PairReader
from freezealign.features import FeatureStore, Level
from freezealign.features.folder import StoreFolder
from freezealign.features.job import extract_features
from freezealign.files import claim, exclusive
from freezealign.modules.landmarks import LandmarkHead
from freezealign.space import Space, Tower
from freezealign.space.recipes import build_blocks
from freezealign.training.arguments import FitArguments, History
from freezealign.training.batches import Batches, CachedBatches, OnlineBatches
from freezealign.training.checkpoints import trained_parameters
from freezealign.training.class_names import class_pairs
from freezealign.training.closed_form import closed_form_obstacle, initialize_closed_form
from freezealign.training.plan import NEEDS_CACHE, choose_recipe, make_plan, suits_kernel
from freezealign.training.trainer import Trainer, check_trainable, seeded

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1


class Fitted(NamedTuple):
    """What was chosen, what happened, and how many pairs there were, where that is known."""

    arguments: FitArguments
    history: History
    pairs: int | None


def fit(space: Space, data: Any, arguments: FitArguments, evaluator: Callable[..., Any] | None = None) -> Fitted:
    """Do what :meth:`freezealign.FreezeAlign.fit` says."""
    check_trainable(space, arguments, evaluator)
    accelerator = make_accelerator(space, arguments)
    stores = given_stores(space, data, arguments.strict)
    reader = None if stores else PairReader(data, space.modalities)
    arguments = settle(space, stores, reader, arguments, accelerator.num_processes)
    with seeded(arguments.seed, space.device):
        if reader is not None and arguments.cache_features:
            stores = [extract(space, reader, arguments, accelerator)]
        for store in stores:
            store.check(space.origins(store.level))
        if arguments.class_names:
            stores, arguments = with_class_names(space, stores, arguments)
        recipe = choose_recipe(space, stores, arguments)
        pairs = reader.count if reader is not None and not stores else sum(map(len, stores))
        plan = make_plan(space, recipe, pairs, bool(stores), arguments)
        assert plan.arguments.batch_size is not None
        order = (plan.arguments.batch_size, arguments.seed)
        batches: Batches
        if reader is not None and not stores:
            batches = OnlineBatches(reader, space.encoders, *order, arguments.strict)
        else:
            ranks = (accelerator.process_index, accelerator.num_processes)
            batches = CachedBatches(stores, *order, arguments.weights, arguments.captions, *ranks)
    with own_folder(space, recipe, batches, plan.arguments, accelerator):
        logger.info(plan.reasons)
        with seeded(arguments.seed, space.device):
            initialize(space, recipe, stores, plan.arguments)
        history = Trainer(space, batches, plan, accelerator, evaluator).run()
    space.is_trained = True
    return Fitted(plan.arguments, history, batches.num_pairs)


def settle(
    space: Space, stores: Sequence[FeatureStore], reader: PairReader | None, arguments: FitArguments, processes: int
) -> FitArguments:
    """Return the arguments with what the data decides; raise a ``ValueError`` if they do not go together with it."""
    cached = bool(stores) or arguments.cache_features
    if arguments.weights is not None and len(arguments.weights) != max(len(stores), int(cached)):
        raise ValueError(f"{len(arguments.weights)} weights for {len(stores)} feature stores.")
    if arguments.class_names and not cached:
        raise ValueError("class_names=True needs cached features: leave cache_features=True.")
    if arguments.class_names and not {"image", "text"} <= set(space.modalities):
        raise ValueError(f"class_names=True needs towers called image and text, not {list(space.modalities)}.")
    if arguments.captions > 1 and not cached:
        raise ValueError(f"captions={arguments.captions} needs cached features: leave cache_features=True.")
    if processes > 1 and not cached:
        raise ValueError("with several processes, extract the features first: model.extract_features(data, path).")
    if arguments.init == "closed-form" and (obstacle := closed_form_obstacle(space) if cached else NEEDS_CACHE):
        raise ValueError(f"init='closed-form' cannot be used: {obstacle}.")
    if reader is None or reader.loader is None:
        return arguments
    own = reader.loader.batch_size
    if not cached and arguments.batch_size not in (None, own):
        raise ValueError(f"batch_size={arguments.batch_size}, but without a cache the DataLoader keeps its own {own}.")
    return replace(arguments, batch_size=arguments.batch_size or own)


def given_stores(space: Space, data: Any, strict: bool) -> list[FeatureStore]:
    """Return the feature stores that ``data`` is, or holds all vectors of; none if it is something else."""
    takes_vectors = all(encoder.kind == "vector" for encoder in space.encoders.values())
    if takes_vectors and isinstance(data, Mapping) and set(space.modalities) <= set(data):
        arrays = {name: data[name] for name in space.modalities}
        return [FeatureStore.from_arrays(arrays, data.get("id"), encoders=space.encoders, strict=strict)]
    data = [data] if isinstance(data, FeatureStore) else data
    is_stores = isinstance(data, (list, tuple)) and data and all(isinstance(part, FeatureStore) for part in data)
    return list(data) if is_stores else []


def extract(space: Space, reader: PairReader, arguments: FitArguments, accelerator: Accelerator) -> FeatureStore:
    """Return the frozen features of the data in memory; of several processes, the first extracts them for all."""
    pools = suits_kernel(space, reader.count, arguments) or (arguments.class_names and space.recipe == "auto")
    level: Level | None = "pooled" if pools else None
    extraction = space.extraction(
        level, dtype="float32", batch_size=arguments.encode_batch_size, strict=arguments.strict
    )

    def run(path: Path | None) -> FeatureStore:
        return extract_features(reader, extraction, space.device, path, True, "local", arguments.show_progress_bar)

    if accelerator.num_processes == 1:
        return run(None)
    from accelerate.utils import broadcast_object_list

    made = [tempfile.mkdtemp(prefix="freezealign-") if accelerator.is_main_process else None]
    folder = Path(broadcast_object_list(made)[0], "features")
    try:
        if accelerator.is_main_process:
            run(folder)
        while not StoreFolder(folder).complete:
            time.sleep(POLL_SECONDS)  # not a barrier, which gives up after minutes
        store = FeatureStore.open(folder).resident()
        accelerator.wait_for_everyone()
        return store
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(folder.parent, ignore_errors=True)


def with_class_names(
    space: Space, stores: Sequence[FeatureStore], arguments: FitArguments
) -> tuple[list[FeatureStore], FitArguments]:
    """Return the stores and one more, of the pairs of an image encoder's class names, each drawn once an epoch."""
    weights = None if arguments.weights is None else (*arguments.weights, 1.0)
    return [*stores, class_pairs(space, stores[0])], replace(arguments, weights=weights)


def identity(
    space: Space, recipe: str | None, batches: Batches, arguments: FitArguments, accelerator: Accelerator
) -> dict[str, Any]:
    """Return what a run depends on, as JSON: the same before it and after it, when the model has what it made."""
    facts = {
        "pairs": batches.num_pairs,
        "data": batches.digest(),
        "processes": accelerator.num_processes,
        "autocast": arguments.precision or accelerator.mixed_precision,
    }
    with torch.device("meta"):  # blocks that are chosen here, and landmarks that are taken here, are not there before
        for name, tower in space.named_towers.items():
            facts[name] = tower.encoder.fingerprint
            width = tower.get_embedding_dimension()
            blocks = tower.blocks if recipe is None else build_blocks(tower.encoder, recipe, width)[1:]
            if blocks and isinstance(head := blocks[-1], LandmarkHead) and arguments.init == "closed-form":
                blocks = [*blocks[:-1], type(head)(**{**head.get_config_dict(), "landmarks": 0})]
            shapes = {key: list(value.shape) for key, value in trained_parameters(nn.Sequential(*blocks)).items()}
            facts |= {f"the shape of towers.{name}.{key}": shape for key, shape in shapes.items()}
    return {**arguments.identity(), **facts}


@contextmanager
def own_folder(
    space: Space, recipe: str | None, batches: Batches, arguments: FitArguments, accelerator: Accelerator
) -> Iterator[None]:
    """Begin a run in its folder or go on with it there, and keep others out; the first process answers for all."""
    if arguments.output_dir is None:
        yield
        return
    folder = Path(arguments.output_dir, "checkpoints")
    with exclusive(folder) if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            claim(folder / "run.json", identity(space, recipe, batches, arguments, accelerator), "training run")
        accelerator.wait_for_everyone()
        yield


def initialize(space: Space, recipe: str | None, stores: Sequence[FeatureStore], arguments: FitArguments) -> None:
    """Give the space the blocks and the weights that training starts from; a failure leaves it as it was."""
    before, copies = space.recipe, {}
    if arguments.init == "closed-form":
        copies = {name: Tower([tower.encoder, *deepcopy(tower.blocks)]) for name, tower in space.named_towers.items()}
    try:
        if recipe is not None:
            space.set_recipe(recipe)
        elif space.recipe == "auto":
            space.recipe = "token"
        if arguments.init == "closed-form":
            initialize_closed_form(space, stores, arguments.weights, arguments.seed)
    except Exception:
        space.towers.update(copies)
        space.recipe = before
        raise
    if arguments.loss == "sigmoid":
        space.logit_scale.add_bias_()


def make_accelerator(space: Space, arguments: FitArguments) -> Accelerator:
    """Return accelerate's view of the processes, and move the space to this one's device if there are several."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # Accelerate's device is chosen once a process and for good, and does not matter to a process that is alone.
    on_cpu = space.device.type == "cpu" and int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(
        cpu=on_cpu,
        log_with=list(arguments.report_to) or None,
        project_dir=str(arguments.output_dir or "."),
        # A tower may hold what its pooling does not read, and only one of the losses reads the bias.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.num_processes > 1:
        space.to(accelerator.device)
    return accelerator
