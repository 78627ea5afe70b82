"""Runs of training in processes of their own: killed on the way, or several that train as one.

``python runs.py FOLDER`` does the runs of ``FOLDER/runs.json``, one after another; what each rank found is then in
``FOLDER/NAME/RANK.json`` and ``.safetensors``. ``python runs.py FOLDER SEED`` does so in forks that it kills at random
times, until one comes through, and leaves their number in ``FOLDER/kills``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from safetensors.torch import save_file

from freezealign import FreezeAlign, FrozenEncoder
from freezealign.encoders.callable import CallableEncoder

QUIET = {"show_progress_bar": False}


def vectors(items) -> np.ndarray:
    """An encoder of vectors: themselves."""
    return np.stack(items)


def letters(items) -> np.ndarray:
    """An encoder of texts: how often each letter occurs."""
    return np.stack([np.bincount([ord(c) % 16 for c in item], minlength=16).astype(np.float32) for item in items])


def make_model(seed: int = 0, dropout: float | None = None, dim: int = 8) -> FreezeAlign:
    """A model of a tower for vectors and one for texts, 8 wide."""
    encoders = [
        FrozenEncoder(CallableEncoder(vectors, "vector", 16)),
        FrozenEncoder(CallableEncoder(letters, "text", 16), "text"),
    ]
    model = FreezeAlign(encoders, recipe="token", dim=dim, seed=seed, device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and dropout is not None:
            module.p = dropout
    return model


def make_pairs(n: int = 36, captions: int = 1, seed: int = 0) -> list:
    """Vectors, each with texts of random letters."""
    rng = np.random.default_rng(seed)
    texts = [["".join(rng.choice(list("abcdefghijklmno"), 12)) for _ in range(captions)] for _ in range(n)]
    return list(zip(rng.normal(size=(n, 16)).astype(np.float32), texts))


def trained(model: FreezeAlign) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


class Score:
    """An evaluator whose score is a number of the weights, better the smaller some of them are."""

    primary_metric = "score"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model, output_path=None, epoch=-1, steps=-1) -> dict[str, float]:
        self.calls += 1
        return {"score": -float(sum(value.abs().sum() for value in trained(model).values()))}


class LateScore(Score):
    """An evaluator that says what its metric is once it has been called."""

    primary_metric = None

    def __call__(self, model, output_path=None, epoch=-1, steps=-1) -> dict[str, float]:
        self.primary_metric = "score"
        return super().__call__(model, output_path, epoch, steps)


def run(folder: Path, fit: dict, dropout=None, captions=1, stores=0, bias=False, stop_after=None, late=False) -> None:
    """Train as told and keep what came out."""
    model, evaluator = make_model(dropout=dropout), LateScore() if late else Score()
    if bias:
        model.logit_scale.add_bias_()
    if stop_after is not None:
        interrupt(model, stop_after)
    data = make_pairs(captions=captions)
    if stores:
        data = [model.extract_features(make_pairs(captions=captions, seed=seed), **QUIET) for seed in range(stores)]
    try:
        history = model.fit(data, evaluator, **QUIET, **fit)
    except (KeyboardInterrupt, ValueError) as error:
        result = {"error": str(error)}
    else:
        result = {"losses": history.losses, "evaluations": history.evaluations, "calls": evaluator.calls}
    folder.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK", "0")
    save_file(trained(model), folder / f"{rank}.safetensors")
    (folder / f"{rank}.json").write_text(json.dumps(result))


def run_all(folder: Path) -> None:
    """Do the runs that ``folder/runs.json`` names."""
    for name, told in json.loads((folder / "runs.json").read_text()).items():
        run(folder / name, **told)


def interrupt(model: FreezeAlign, steps: int) -> None:
    """Make the forward pass of step ``steps + 1`` fail."""
    calls = iter(range(steps))
    original = model.forward

    def forward(inputs):
        if model.training and next(calls, None) is None:
            raise KeyboardInterrupt("interrupted")
        return original(inputs)

    model.forward = forward  # type: ignore[method-assign]


def run_and_kill(folder: Path, seed: int) -> int:
    """Run in forks, each killed after a random time, until one comes to its end; return how many were killed."""
    import torch._dynamo  # noqa: F401  what a fork would import anew each time

    make_model().fit(make_pairs(), schedule="paper", epochs=0, **QUIET)
    rng, kills = random.Random(seed), 0
    while True:
        if (child := os.fork()) == 0:
            run_all(folder)
            os._exit(0)
        time.sleep(rng.uniform(0.02, 0.1) * 1.1**kills)  # in the end even the slowest machine comes through
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return kills
        kills += 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    if len(sys.argv) == 3:
        (where / "kills").write_text(str(run_and_kill(where, int(sys.argv[2]))))
    else:
        run_all(where)
