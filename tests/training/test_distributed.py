"""Two processes that train as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import QUIET, Score, make_model, make_pairs, trained
from safetensors.torch import load_file

RANKS = 2
FIT = {"schedule": "paper", "epochs": 2, "batch_size": 12, "learning_rate": 1e-2}
SAME = {
    "infonce": {"fit": FIT},
    "sigmoid": {"fit": {**FIT, "loss": "sigmoid"}},
    "several captions": {"captions": 3, "fit": {**FIT, "captions": 2}},
    "mixed": {"stores": 2, "fit": {**FIT, "weights": [1.0, 1.5]}},
    "a bias that is not used": {"bias": True, "fit": FIT},
    "closed form": {"fit": {**FIT, "init": "closed-form"}},
}
DRY = {name: {"dropout": 0.0, **told} for name, told in SAME.items()}
RESUMED = {**FIT, "save_every": 1}
RUNS = {
    **DRY,
    "local": {"dropout": 0.0, "fit": {**FIT, "global_negatives": False}},
    "whole": {"fit": {**RESUMED, "output_dir": "whole-run"}},
    "stopped": {"stop_after": 4, "fit": {**RESUMED, "output_dir": "stopped-run"}},
    "resumed": {"fit": {**RESUMED, "output_dir": "stopped-run"}},
    "best": {"fit": {**FIT, "keep_best": True, "evaluate_every": 2}},
    "late": {"late": True, "fit": {**FIT, "keep_best": True}},
    "uneven": {"fit": {**FIT, "batch_size": 11}},
    "not cached": {"fit": {**FIT, "cache_features": False}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All runs, done by two processes on the CPU that start as torchrun starts them."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "runs.json").write_text(json.dumps(RUNS))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    done = subprocess.run(
        [*command, Path(__file__).with_name("runs.py"), folder],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def found(folder: Path, name: str) -> list[dict]:
    return [json.loads((folder / name / f"{rank}.json").read_text()) for rank in range(RANKS)]


def weights(folder: Path, name: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(folder / name / f"{rank}.safetensors") for rank in range(RANKS)]


def alone(fit, dropout=None, captions=1, stores=0, bias=False):
    """The same run by this process."""
    model = make_model(dropout=dropout)
    if bias:
        model.logit_scale.add_bias_()
    data = make_pairs(captions=captions)
    if stores:
        data = [model.extract_features(make_pairs(captions=captions, seed=seed), **QUIET) for seed in range(stores)]
    return model, model.fit(data, Score(), **QUIET, **fit)


@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_as_one(folder, name):
    model, history = alone(**DRY[name])
    for result, tensors in zip(found(folder, name), weights(folder, name)):
        assert result["losses"] == pytest.approx(history.losses, abs=1e-5)
        for key, value in trained(model).items():
            torch.testing.assert_close(tensors[key], value, atol=1e-5, rtol=0)


def test_local_negatives_are_fewer(folder):
    """Half of the negatives: a smaller loss from the first step on."""
    local, spread = found(folder, "local")[0]["losses"], found(folder, "infonce")[0]["losses"]
    assert local[0] < spread[0] - 0.1


def test_interrupted_processes_go_on_exactly_where_they_were(folder):
    assert found(folder, "stopped") == [{"error": "interrupted"}] * RANKS
    assert found(folder, "resumed")[0]["losses"] == found(folder, "whole")[0]["losses"]
    for resumed, whole in zip(weights(folder, "resumed"), weights(folder, "whole")):
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_processes_drop_out_differently(folder):
    """The dropout of each process is kept in a file of its own."""
    last = max((folder / "whole-run" / "checkpoints").iterdir())
    states = [load_file(last / f"generators-{rank}.safetensors")["cpu"] for rank in range(RANKS)]
    assert not torch.equal(*states)


@pytest.mark.parametrize("name", ["best", "late"])
def test_one_process_evaluates_and_all_know(folder, name):
    first, second = found(folder, name)
    assert (first["calls"], second["calls"]) == (len(first["evaluations"]), 0)
    assert first["evaluations"] == second["evaluations"] != []


@pytest.mark.parametrize("name", [*SAME, "whole", "resumed", "best", "late"])
def test_processes_end_with_the_same_weights(folder, name):
    first, second = weights(folder, name)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uneven", "a batch of 11 pairs cannot be shared by 2 processes evenly"),
        ("not cached", "with several processes, extract the features first"),
    ],
)
def test_what_processes_cannot_share_is_refused_by_all(folder, name, message):
    assert all(message in result["error"] for result in found(folder, name))
