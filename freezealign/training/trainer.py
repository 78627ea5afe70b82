"""The training loop: projectors and temperature learn, encoders never do."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from freezealign.batch import to_device
from freezealign.files import save_tensors
from freezealign.prefetch import prefetch
from freezealign.space import Space
from freezealign.training import checkpoints
from freezealign.training.arguments import FitArguments, History
from freezealign.training.batches import Batches, TrainingBatch
from freezealign.training.checkpoints import Progress
from freezealign.training.objective import Objective
from freezealign.training.plan import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """One run of training: of the projectors and temperature of ``space``, on ``batches``, as ``plan`` says."""

    def __init__(
        self,
        space: Space,
        batches: Batches,
        plan: Plan,
        accelerator: Accelerator,
        evaluator: Callable[..., Any] | None = None,
    ) -> None:
        self.space, self.batches, self.accelerator, self.evaluator = space, batches, accelerator, evaluator
        self.arguments, self.epochs = plan.arguments, plan.arguments.epochs or 0
        self.folder = None if plan.arguments.output_dir is None else Path(plan.arguments.output_dir, "checkpoints")
        self.progress, self.history = Progress(), History(skipped=batches.skipped, plan=plan.reasons)
        self.steps = len(batches) * self.epochs
        self.best_weights: dict[str, Tensor] = {}
        self.generators: dict[str, Tensor] = {}
        self.trained = checkpoints.trained_parameters(space)  # once: the walk passes every frozen parameter
        self.optimizer = make_optimizer(self.trained.values(), self.arguments)
        objective = Objective(space, self.arguments)
        self.objective = accelerator.prepare_model(objective) if accelerator.num_processes > 1 else objective
        precision = self.arguments.precision or accelerator.mixed_precision
        self.dtype = DTYPES.get(precision)
        self.scaler = torch.amp.GradScaler(space.device.type, enabled=precision == "fp16")

    def run(self) -> History:
        """Train to the end, from the last checkpoint if there is one.

        Raises:
            FloatingPointError: If the loss is NaN or infinite; the message names the step and what to try.
            ValueError: If no pair of an epoch can be read, or a checkpoint is damaged.
        """
        self._restore()
        if self.arguments.report_to:
            simple = {k: v for k, v in vars(self.arguments).items() if isinstance(v, (int, float, str, bool))}
            self.accelerator.init_trackers("freezealign", simple)
        try:
            with untouched_generators(self.space.device), self._progress_bar() as self.bar:
                while self.progress.epoch <= self.epochs and not self._out_of_patience():
                    self._run_epoch()
                self._finish()
        finally:
            self.space.eval()
            for tracker in self.accelerator.trackers:  # not end_training, which ends the process group too
                tracker.finish()
        return self.history

    def _run_epoch(self) -> None:
        """Run an epoch, or what is left of one that was interrupted."""
        progress, begun_at = self.progress, self.progress.batch
        seeds = np.random.SeedSequence((self.arguments.seed, progress.epoch, self.accelerator.process_index))
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        batches = self.batches.epoch(progress.epoch, begun_at)
        if self.space.device.type == "cuda":
            from accelerate.utils import recursively_apply

            batches = prefetch(recursively_apply(Tensor.pin_memory, batch) for batch in batches)
        self.space.train()
        for batch in batches:
            if begun_at:  # not before: a shuffling loader draws its order before it gives a batch
                checkpoints.set_generators(self.generators, self.space.device)
                begun_at = 0
            self._step(batch)
            progress.batch = batch.number + 1
            if self._due(self.arguments.evaluate_every):
                self._evaluate(progress.epoch)
                self.space.train()
            if self._due(self.arguments.save_every):
                self._save()
            if self._out_of_patience():
                return
        self.history.skipped = self.batches.skipped
        if not progress.batch:
            reasons = "; ".join(f"pair {entry.index}: {entry.reason}" for entry in self.batches.skipped[:3])
            raise ValueError(f"no batch has two pairs that can be read, and one alone has no negatives. {reasons}")
        if self.arguments.evaluate_every is None:
            self._evaluate(progress.epoch)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        if self.arguments.save_every is None:
            self._save()

    def _finish(self) -> None:
        """Evaluate and save what was not yet, and choose the weights to end with."""
        evaluated = self.history.evaluations[-1]["step"] if self.history.evaluations else None
        if evaluated != self.progress.step:
            self._evaluate(min(self.progress.epoch, self.epochs))
        if self.steps:
            self._save()
        if self.arguments.keep_best and self.best_weights:
            checkpoints.set_tensors(self.trained, self.best_weights)

    def _step(self, batch: TrainingBatch) -> None:
        """Take one optimiser step and record it."""
        arguments, device = self.arguments, self.space.device
        rate = learning_rate(self.progress.step, self.steps, arguments)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        inputs = {key: to_device(features, device) for key, features in batch.inputs.items()}
        owners = None if batch.owners is None else to_device(batch.owners, device)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype is not None):
            loss = self.objective(inputs, owners)
        value = float(self.accelerator.reduce(loss.detach(), "mean"))
        self._check_finite(value, "loss", batch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        limit = math.inf if arguments.clip_norm is None else arguments.clip_norm
        norm = nn.utils.clip_grad_norm_(self.trained.values(), limit)
        if not self.scaler.is_enabled():  # with fp16 the scaler leaves such a step out and lowers its scale
            self._check_finite(float(norm), "norm of the gradient", batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.space.logit_scale.clamp_()
        self.progress.step += 1
        step, epoch = self.progress.step, self.progress.epoch
        curves = {"loss": value, "temperature": self.space.logit_scale.temperature.item(), "learning_rate": rate}
        self.history.steps.append({"step": step, "epoch": epoch, **curves})
        self.accelerator.log(curves, step=step)
        self.bar.update(batch.size)
        shown = {key: f"{curves[key]:.3f}" for key in ("loss", "temperature")}
        self.bar.set_postfix(epoch=epoch, **shown, refresh=False)

    def _check_finite(self, value: float, what: str, batch: TrainingBatch) -> None:
        if math.isfinite(value):
            return
        remedy = "Try a lower learning_rate, a longer warmup or precision='no', or look for NaN in the data"
        if found := batch.not_finite():
            remedy = f"The cause: {found} hold NaN or infinity; extract them again, or leave out that pair"
        last = self.folder and checkpoints.latest(self.folder)
        raise FloatingPointError(
            f"the {what} is {value} at step {self.progress.step + 1}. {remedy}. "
            f"The last good checkpoint: {last or 'none was kept'}."
        )

    def _due(self, every: int | None) -> bool:
        return every is not None and self.progress.step % every == 0

    # Evaluation

    def _evaluate(self, epoch: int) -> None:
        """Call the evaluator on the first process, let all know what it said, and keep the best weights."""
        if self.evaluator is None:
            return
        from accelerate.utils import broadcast_object_list

        results: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            self.space.eval()
            with untouched_generators(self.space.device):
                found = self.evaluator(self.space, output_path=None, epoch=epoch, steps=self.progress.step)
            scores = found if isinstance(found, dict) else {"score": found}
            results = [scores, getattr(self.evaluator, "primary_metric", None)]  # some set it when they are called
        scores, metric = broadcast_object_list(results)
        logger.info("epoch %d, step %d: %s", epoch, self.progress.step, scores)
        self.history.evaluations.append({"step": self.progress.step, "epoch": epoch, **scores})
        numbers = {key: value for key, value in scores.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=self.progress.step)
        if not (self.arguments.keep_best or self.arguments.patience):
            return
        if metric not in scores:
            raise ValueError(
                f"keep_best and patience need an evaluator whose primary_metric is among its results; it is {metric!r}."
            )
        sign = 1 if getattr(self.evaluator, "greater_is_better", True) else -1
        score = sign * float(scores[metric])
        if not math.isnan(score) and (self.progress.best is None or score > self.progress.best):
            self.progress.best, self.progress.since_best = score, 0
            self.best_weights = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        else:
            self.progress.since_best += 1

    def _out_of_patience(self) -> bool:
        patience = self.arguments.patience
        return patience is not None and self.progress.since_best >= patience

    # Checkpoints

    def _restore(self) -> None:
        """Go back to the last checkpoint, if there is one."""
        if self.folder is None:
            return
        if self.accelerator.is_main_process:
            checkpoints.recover(self.folder)
        self.accelerator.wait_for_everyone()
        if (path := checkpoints.latest(self.folder)) is None:
            return
        state, device = checkpoints.read_state(path, self.scaler.is_enabled()), self.space.device
        weights = checkpoints.read_tensors(path / "weights.safetensors", self.trained)
        self.space.logit_scale.check(weights.get("logit_scale.temperature", self.space.logit_scale.temperature), path)
        optimizer = checkpoints.read_optimizer(path / "optimizer.safetensors", self.trained)
        self.generators = checkpoints.read_tensors(path / f"generators-{self.accelerator.process_index}.safetensors")
        if state["progress"].best is not None:
            best = checkpoints.read_tensors(path / "best.safetensors", self.trained)
            self.best_weights = {name: tensor.to(device) for name, tensor in best.items()}
        checkpoints.check_files(path, state)
        for name, values in optimizer.items():
            self.optimizer.state[self.trained[name]] = values
        checkpoints.set_tensors(self.trained, weights)
        self.scaler.load_state_dict(state["scaler"])
        self.progress = state["progress"]
        self.history.steps, self.history.evaluations = state["steps"], state["evaluations"]
        logger.info("going on from %s", path)

    def _save(self) -> None:
        if self.folder is None:
            return
        accelerator, path = self.accelerator, checkpoints.unfinished(self.folder, self.progress.step)
        if accelerator.is_main_process:
            checkpoints.begin(path)
        accelerator.wait_for_everyone()
        generators = checkpoints.generators(self.space.device)
        save_tensors(path / f"generators-{accelerator.process_index}.safetensors", generators)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            save_tensors(path / "weights.safetensors", dict(self.trained))
            checkpoints.save_optimizer(path / "optimizer.safetensors", self.trained, self.optimizer)
            if self.best_weights:
                save_tensors(path / "best.safetensors", self.best_weights)
            state: dict[str, Any] = {"progress": asdict(self.progress), "scaler": self.scaler.state_dict()}
            state |= {"steps": self.history.steps, "evaluations": self.history.evaluations}
            checkpoints.commit(path, state, self.arguments.keep_checkpoints)
        accelerator.wait_for_everyone()

    def _progress_bar(self) -> Any:
        from tqdm.auto import tqdm

        size = self.batches.batch_size
        done = {"total": size and self.steps * size, "initial": self.progress.step * (size or 0)}
        show = self.arguments.show_progress_bar and self.accelerator.is_main_process
        return tqdm(desc="Training", unit="pair", unit_scale=True, disable=not show, delay=1, **done)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from torch's generators as ``seed`` says inside the block, and leave them as they were after it."""
    with untouched_generators(device):
        torch.manual_seed(seed)
        yield


def untouched_generators(device: torch.device) -> AbstractContextManager[None]:
    """Leave torch's generators as they were after the block."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def check_trainable(space: Space, arguments: FitArguments, evaluator: Any) -> None:
    """Raise a ``ValueError`` if there are not exactly two towers, or nothing to train, or nothing to choose by."""
    if len(space.towers) != 2:
        raise ValueError(f"fit aligns two towers, but this model has {list(space.towers)}.")
    if not any(parameter.requires_grad for parameter in space.towers.parameters()):
        raise ValueError("there is nothing to train: every block is an identity or frozen.")
    if (arguments.keep_best or arguments.patience) and not hasattr(evaluator, "primary_metric"):
        raise ValueError("keep_best and patience need an evaluator with a primary_metric.")


def make_optimizer(parameters: Iterable[nn.Parameter], arguments: FitArguments) -> Optimizer:
    """Return AdamW over what is trained: weight decay on matrices, none on norms, biases and the temperature.

    Its learning rate is set before every step; see :func:`learning_rate`.
    """
    trained = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": arguments.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
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
