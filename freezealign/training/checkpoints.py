"""Checkpoints: all that a run needs to go on exactly where it was, as safetensors and JSON; nothing is ever unpickled.

::

    checkpoints/run.json         what the run depends on
    checkpoints/step-00000100/   weights, optimiser, random generators, best weights, state.json
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from freezealign.files import check_object, check_version, read_object, save_tensors, write_json_atomically

FORMAT_VERSION = 1
STATE = "state.json"
STATE_KINDS = {"progress": dict, "scaler": dict, "steps": list, "evaluations": list}
PROGRESS_KINDS = {"step": int, "epoch": int, "batch": int, "best": (int, float, type(None)), "since_best": int}
SCALER_KINDS = {
    **dict.fromkeys(("scale", "growth_factor", "backoff_factor"), (int, float)),
    **dict.fromkeys(("growth_interval", "_growth_tracker"), int),
}
STEP_KINDS = {"step": int, "epoch": int, **dict.fromkeys(("loss", "temperature", "learning_rate"), (int, float))}
"""What is in ``state.json``, and of which type."""
REMEDY = "remove that folder to go on from an earlier checkpoint"


@dataclass
class Progress:
    """Where a run is, as JSON.

    Args:
        step: Steps taken.
        epoch: The epoch at work, from 1.
        batch: Batches of it that have been used.
        best: The best score of the evaluator so far.
        since_best: Evaluations since then.
    """

    step: int = 0
    epoch: int = 1
    batch: int = 0
    best: float | None = None
    since_best: int = 0


def recover(folder: Path) -> None:
    """Put a checkpoint in its place that was whole when a kill stopped :func:`commit`."""
    for path in sorted(folder.glob(".step-*.tmp"), reverse=True):  # the newer of one step first
        final = path.with_name(path.name.removeprefix(".").split(".")[0])
        if (path / STATE).is_file() and not final.exists():
            path.rename(final)


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in ``folder``."""
    found = sorted(path for path in folder.glob("step-*") if (path / STATE).is_file())
    return found[-1] if found else None


def unfinished(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step is written; it does not count before :func:`commit`."""
    return folder / f".step-{step:08d}.tmp"


def begin(path: Path) -> None:
    """Make ``path`` an empty folder, and remove what an interrupted run left beside it."""
    for rest in path.parent.glob(".step-*.tmp"):
        shutil.rmtree(rest)
    path.mkdir(parents=True)


def commit(path: Path, state: dict[str, Any], keep: int) -> None:
    """Write the state, make the checkpoint count, and remove all but the newest ``keep``."""
    write_json_atomically(path / STATE, {"format_version": FORMAT_VERSION, **state})
    final = path.with_name(path.name.removeprefix(".").removesuffix(".tmp"))
    aside = final.with_name(f".{final.name}.old.tmp")
    if final.exists():  # the last step of a run that is saved once more at its end
        final.rename(aside)
    path.rename(final)
    shutil.rmtree(aside, ignore_errors=True)
    for old in sorted(path.parent.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def read_state(path: Path, scales: bool) -> dict[str, Any]:
    """Return a checkpoint's state, with its ``progress`` as a :class:`Progress`.

    Args:
        path: The checkpoint.
        scales: Whether the loss is scaled, so that there must be a state of the scaler.

    Raises:
        ValueError: If it is damaged, or a later version wrote it.
    """
    file = path / STATE
    state = read_object(file, {"format_version": int})
    check_version(path, state, FORMAT_VERSION)
    check_object(file, state, STATE_KINDS)
    check_object(file, state["progress"], PROGRESS_KINDS)
    check_object(file, state["scaler"], SCALER_KINDS if scales else {})
    for step in state["steps"]:
        check_object(file, step, STEP_KINDS)
    for evaluation in state["evaluations"]:
        check_object(file, evaluation, {"step": int, "epoch": int})
    progress = {key: state["progress"][key] for key in PROGRESS_KINDS}
    return {**state, "progress": Progress(**progress)}


def read_tensors(path: Path, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the tensors of one file of a checkpoint.

    Args:
        path: The file.
        like: What it has to hold, by name and shape.

    Raises:
        ValueError: If it is missing or damaged, holds something else, or NaN or infinity.
    """
    try:
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {REMEDY}.") from None
    for name in sorted(tensors.keys() | (like or {}).keys()):
        shapes = [tuple(found[name].shape) if name in found else "nothing" for found in (tensors, like or tensors)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{path} holds {shapes[0]} as '{name}', where {shapes[1]} is trained; {REMEDY}.")
        if not tensors[name].isfinite().all():
            raise ValueError(f"{path} holds NaN or infinity as '{name}'; {REMEDY}.")
    return tensors


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def set_tensors(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the parameters of their names."""
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def save_optimizer(path: Path, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Write the optimiser's state, each tensor under its parameter's name."""
    states = {name: optimizer.state.get(parameter, {}) for name, parameter in parameters.items()}
    save_tensors(path, {f"{name}:{key}": value for name, state in states.items() for key, value in state.items()})


def read_optimizer(path: Path, parameters: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """Return what :func:`save_optimizer` wrote, by parameter, each tensor where its parameter is.

    Raises:
        ValueError: As :func:`read_tensors`.
    """
    tensors = read_tensors(path)
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition(":")
        shape = () if entry == "step" else tuple(parameters[name].shape) if name in parameters else None
        if name not in parameters or tuple(tensor.shape) != shape:
            raise ValueError(f"{path} holds {tuple(tensor.shape)} as '{key}', which is not trained so; {REMEDY}.")
        states.setdefault(name, {})[entry] = tensor if entry == "step" else tensor.to(parameters[name].device)
    return states


def generators(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Put torch's generators into ``states``."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
