"""Checkpoints: all that a run needs to go on exactly where it was, as safetensors and JSON; nothing is ever unpickled.

::

    checkpoints/run.json         what the run depends on
    checkpoints/step-00000100/   weights, optimiser, random generators, best weights, state.json
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from freezealign.files import check_version, read_object, save_tensors, write_json_atomically

FORMAT_VERSION = 1
STATE = "state.json"


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


def read_state(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state.

    Raises:
        ValueError: If it is damaged, or a later version wrote it.
    """
    state = read_object(path / STATE, ("format_version", "progress"))
    check_version(path, state, FORMAT_VERSION)
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file of a checkpoint.

    Raises:
        ValueError: If it is missing or damaged.
    """
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); remove {path.parent} to go on from an earlier one."
        ) from None


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def set_trained_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into the parameters that are trained."""
    for name, parameter in trained_parameters(model).items():
        parameter.copy_(tensors[name])


def save_optimizer(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Write the optimiser's state, each tensor under its parameter's name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {
        f"{names[id(parameter)]}:{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    save_tensors(path, tensors)


def load_optimizer(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Read what :func:`save_optimizer` wrote."""
    parameters = dict(model.named_parameters())
    for name, tensor in read_tensors(path).items():
        parameter_name, key = name.rsplit(":", 1)
        parameter = parameters[parameter_name]
        optimizer.state[parameter][key] = tensor if key == "step" else tensor.to(parameter.device)


def generators(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Put torch's generators into ``states``."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
