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
from typing import Any, TypedDict, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import NotRequired

from freezealign.files import changed_files, file_digest, read_object, save_tensors, write_json_atomically
from freezealign.forms import check_version

FORMAT_VERSION = 1
STATE = "state.json"
REMEDY = "remove that folder to go on from an earlier checkpoint"


@dataclass
class Progress:
    """Where a run is: steps taken, the epoch at work and its batches used, the best score and evaluations since it."""

    step: int = 0
    epoch: int = 1
    batch: int = 0
    best: float | None = None
    since_best: int = 0


class Step(TypedDict):
    """An entry of the history's ``steps``."""

    step: int
    epoch: int
    loss: float
    temperature: float
    learning_rate: float


class Evaluation(TypedDict):
    """An entry of its ``evaluations``, results aside."""

    step: int
    epoch: int


SCALER = dict.fromkeys(("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"), float)
FORM = {
    "format_version": int,
    "files": NotRequired[dict[str, str]],
    "progress": get_type_hints(Progress),
    "scaler": dict,
    "steps": list[Step],
    "evaluations": list[Evaluation],
}
"""What ``state.json`` holds."""


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
    """Write the state with digests of the files, make the checkpoint count, and remove all but the newest ``keep``."""
    files = {file.name: file_digest(file) for file in sorted(path.iterdir())}
    write_json_atomically(path / STATE, {"format_version": FORMAT_VERSION, "files": files, **state})
    final = path.with_name(path.name.removeprefix(".").removesuffix(".tmp"))
    aside = final.with_name(f".{final.name}.old.tmp")
    if final.exists():  # the last step of a run that is saved once more at its end
        final.rename(aside)
    path.rename(final)
    shutil.rmtree(aside, ignore_errors=True)
    for old in sorted(path.parent.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def read_state(path: Path, scales: bool) -> dict[str, Any]:
    """Return a checkpoint's state, with its :class:`Progress`, and that of the scaler if it ``scales`` the loss.

    Raises:
        ValueError: If it is damaged, or a later version wrote it.
    """
    file = path / STATE
    check_version(path, read_object(file, {"format_version": int}), FORMAT_VERSION)
    state = read_object(file, {**FORM, "scaler": SCALER if scales else dict})
    try:
        return {**state, "progress": Progress(**state["progress"])}
    except TypeError as error:
        raise ValueError(f"{file}: {error}; {REMEDY}.") from None


def check_files(path: Path, state: Mapping[str, Any]) -> None:
    """Compare a checkpoint's files with the digests in its state, which earlier versions did not note.

    Raises:
        ValueError: If one differs. What is wrong in it says more, so read them before.
    """
    if changed := changed_files(path, state.get("files", {})):
        raise ValueError(f"{path / changed[0]} is not as it was written, by its SHA-256; {REMEDY}.")


def read_tensors(path: Path, like: Mapping[str, Tensor] | None = None, partial: bool = False) -> dict[str, Tensor]:
    """Return the tensors of one file of a checkpoint: all those of ``like`` by name and shape, or some if ``partial``.

    Raises:
        ValueError: If it is missing or damaged, holds something else, or NaN or infinity.
    """
    try:
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {REMEDY}.") from None
    like = tensors if like is None else like
    for name in sorted(tensors if partial else tensors.keys() | like.keys()):
        shapes = [tuple(found[name].shape) if name in found else "nothing" for found in (tensors, like)]
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
    """Return what :func:`save_optimizer` wrote, by parameter; what no loss has reached has no state."""
    like: dict[str, Tensor] = {f"{name}:step": torch.zeros(()) for name in parameters}
    like |= {f"{name}:{key}": value for name, value in parameters.items() for key in ("exp_avg", "exp_avg_sq")}
    states: dict[str, dict[str, Tensor]] = {}
    for path_in_state, tensor in read_tensors(path, like, partial=True).items():
        name, key = path_in_state.rsplit(":", 1)
        states.setdefault(name, {})[key] = tensor if key == "step" else tensor.to(parameters[name].device)
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
