"""Interrupted training: it goes on exactly where it was, or says why it cannot."""

from __future__ import annotations

import copy
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import QUIET, Score, make_model, make_pairs, trained
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from freezealign import FeatureStore, FreezeAlign
from freezealign.training import batches, order

PAPER = {"schedule": "paper", "epochs": 3, "batch_size": 6, **QUIET}


def collate(batch):
    return [vector for vector, _ in batch], [texts for _, texts in batch]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*step-*"))


def interrupted(data, evaluator, steps: int, **options):
    """Train a new model for ``steps`` steps, then fail."""

    class Interrupted(Exception):
        pass

    calls = iter(range(steps))

    def stop(module, _):
        if module.training and next(calls, None) is None:
            raise Interrupted

    model = make_model()
    model.register_forward_pre_hook(stop)
    try:
        return model, model.fit(data, evaluator, **{**PAPER, **options})
    except Interrupted:
        return model, None


def store_on_disk(folder: Path, n: int = 36, captions: int = 1) -> FeatureStore:
    pairs = make_pairs(n, captions)
    return make_model().extract_features(pairs, folder, dtype="float32", shard_size=10, **QUIET)


KINDS = {
    "cached": (lambda _: make_pairs(), {}),
    "several captions": (lambda _: make_pairs(captions=3), {"captions": 2}),
    "from disk in windows": (lambda folder: store_on_disk(folder / "store", 90), {"batch_size": 9}),
    "mixed": (
        lambda _: [make_model().extract_features(make_pairs(seed=seed), **QUIET) for seed in (1, 2)],
        {"weights": (1.0, 0.3)},
    ),
    "not cached": (lambda _: make_pairs(captions=3), {"cache_features": False}),
    "shuffling loader": (
        lambda _: DataLoader(make_pairs(captions=3), 6, shuffle=True, collate_fn=collate),
        {"cache_features": False},
    ),
    "loader with a worker": (
        lambda _: DataLoader(make_pairs(), 12, shuffle=True, collate_fn=collate, num_workers=1),
        {"cache_features": False, "batch_size": None},
    ),
    "best weights": (lambda _: make_pairs(), {"keep_best": True, "patience": 9, "evaluate_every": 2}),
    "evaluated each epoch": (lambda _: make_pairs(), {"keep_best": True, "save_every": 6}),
    "sigmoid": (lambda _: make_pairs(), {"loss": "sigmoid"}),
    "closed form": (lambda _: make_pairs(), {"init": "closed-form", "structure_weight": 1.0}),
    "bf16": (lambda _: make_pairs(), {"precision": "bf16"}),
    "one checkpoint an epoch": (lambda _: make_pairs(), {"save_every": None}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_run_ends_as_if_it_had_not_been(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "WINDOW_BYTES", 4000)
    monkeypatch.setattr(order, "CHUNK", 5)
    make_data, options = KINDS[kind]
    options, data = {"save_every": 2, **options}, make_data(tmp_path)
    whole = make_model()
    expected = whole.fit(data, Score(), **{**PAPER, **options}, output_dir=tmp_path / "whole")
    rng, history, attempts = random.Random(kind), None, 0
    while history is None:
        attempts += 1
        torch.manual_seed(attempts)  # whatever state the process is in when it begins again
        model, history = interrupted(data, Score(), rng.randint(1, 8), **options, output_dir=tmp_path / "run")
    assert attempts > 1
    assert history.steps == expected.steps
    assert history.evaluations == expected.evaluations
    assert all(torch.equal(value, trained(whole)[name]) for name, value in trained(model).items())


@pytest.mark.parametrize("seed", [0])
def test_killed_run_ends_as_if_it_had_not_been(tmp_path, seed):
    """SIGKILL at any moment, in the middle of a checkpoint too."""
    fit = {"schedule": "paper", "epochs": 20, "batch_size": 6, "save_every": 2, "keep_best": True, "evaluate_every": 3}
    told = {"captions": 2, "fit": {**fit, "captions": 2, "output_dir": str(tmp_path)}}
    (tmp_path / "runs.json").write_text(json.dumps({"killed": told}))
    subprocess.run([sys.executable, Path(__file__).with_name("runs.py"), tmp_path, str(seed)], check=True, timeout=300)
    assert int((tmp_path / "kills").read_text()) > 2
    model = make_model()
    expected = model.fit(make_pairs(captions=2), Score(), **fit, captions=2, **QUIET)
    found = json.loads((tmp_path / "killed" / "0.json").read_text())
    assert found["losses"] == expected.losses
    assert found["evaluations"] == expected.evaluations
    weights = load_file(tmp_path / "killed" / "0.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in trained(model).items())
    assert checkpoints(tmp_path) == ["step-00000118", "step-00000120"]


# What is kept


def test_only_the_newest_checkpoints_stay(tmp_path):
    make_model().fit(make_pairs(), **PAPER, output_dir=tmp_path, save_every=4, keep_checkpoints=3)
    assert checkpoints(tmp_path) == ["step-00000012", "step-00000016", "step-00000018"]


def test_checkpoints_hold_safetensors_and_json_alone(tmp_path):
    make_model().fit(make_pairs(), Score(), **PAPER, output_dir=tmp_path, keep_best=True)
    files = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        "best.safetensors",
        "generators-0.safetensors",
        "optimizer.safetensors",
        "run.json",
        "state.json",
        "weights.safetensors",
    }
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            with safe_open(path, "pt") as file:
                assert file.keys()


def test_nothing_is_written_without_an_output_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model().fit(make_pairs(), **PAPER)
    assert list(tmp_path.iterdir()) == []


def test_finished_run_takes_no_further_step(tmp_path):
    options = {**PAPER, "keep_best": True, "output_dir": tmp_path}
    first, second, evaluator = make_model(), make_model(seed=1), Score()
    expected = first.fit(make_pairs(), Score(), **options)
    history = second.fit(make_pairs(), evaluator, **options)
    assert (history.steps, history.evaluations) == (expected.steps, expected.evaluations)
    assert evaluator.calls == 0
    assert all(torch.equal(value, trained(first)[name]) for name, value in trained(second).items())


def test_run_out_of_patience_stays_so(tmp_path):
    options = {**PAPER, "epochs": 20, "patience": 2, "output_dir": tmp_path}
    history = make_model().fit(make_pairs(), Score(), **options)
    again = make_model().fit(make_pairs(), Score(), **options)
    assert len(history.steps) == len(again.steps) < 6 * 20


RERUNS = {
    "kernel by itself": ("auto", {}),
    "kernel, then trained": ("auto", {"epochs": 2}),
    "kernel": ("kernel", {"epochs": 2}),
    "kernel, kept": ("kernel", {"init": "closed-form", "epochs": 1, "loss": "sigmoid"}),
    "relative": ("relative", {"init": "closed-form"}),
    "tokens": ("auto", {"init": "closed-form", "schedule": "paper", "epochs": 2}),
    "pooled": ("auto", {"init": "random", "epochs": 2, "level": "pooled"}),
    "sigmoid": ("token", {"schedule": "paper", "epochs": 2, "loss": "sigmoid"}),
}


@pytest.mark.parametrize("kind", RERUNS)
def test_finished_run_is_returned_to_its_own_model_and_to_a_new_one(kind, tmp_path):
    """What a run makes of the model, other blocks, landmarks or a bias, does not make it another run."""
    recipe, options = RERUNS[kind]
    options = {"batch_size": 6, "output_dir": tmp_path, **options, **QUIET}
    level = options.pop("level", None)
    models = [FreezeAlign(make_model().encoders, recipe=recipe, dim=8, seed=0, device="cpu") for _ in range(2)]
    data = make_pairs() if level is None else models[0].extract_features(make_pairs(), level=level, **QUIET)
    first, weights = models[0].fit(data, **options), trained(models[0])
    for model in models:
        again = model.fit(data, **options)
        assert again.steps == first.steps
        assert all(torch.equal(value, weights[name]) for name, value in trained(model).items())


# What is refused


@pytest.fixture
def finished(tmp_path) -> Path:
    make_model().fit(make_pairs(), Score(), **PAPER, output_dir=tmp_path, keep_best=True)
    return tmp_path


CHANGES = {
    "epochs": {"epochs": 4},
    "batch_size": {"batch_size": 9},
    "learning_rate": {"learning_rate": 0.1},
    "seed": {"seed": 1},
    "loss": {"loss": "sigmoid"},
    "init": {"init": "closed-form"},
    "captions": {"captions": 2},
    "precision": {"precision": "bf16"},
    "clip_norm": {"clip_norm": None},
}


@pytest.mark.parametrize("name", CHANGES)
def test_run_with_another_argument_is_refused_by_name(finished, name):
    with pytest.raises(ValueError, match=rf"was begun with {name} = .*, this run has .*another folder"):
        make_model().fit(make_pairs(), Score(), **{**PAPER, "keep_best": True, **CHANGES[name]}, output_dir=finished)


def test_run_on_more_pairs_is_refused(finished):
    with pytest.raises(ValueError, match="was begun with pairs = 36, this run has 40"):
        make_model().fit(make_pairs(40), Score(), **PAPER, keep_best=True, output_dir=finished)


def test_run_of_a_model_of_another_width_is_refused(finished):
    model = make_model(dim=4)
    before = trained(model)
    with pytest.raises(ValueError, match=r"was begun with the shape of towers\.vector\S+ = \[8"):
        model.fit(make_pairs(), Score(), **PAPER, keep_best=True, output_dir=finished)
    assert all(torch.equal(value, before[name]) for name, value in trained(model).items())


def test_what_does_not_change_the_training_may_be_changed(finished):
    options = {"save_every": 7, "keep_checkpoints": 1, "data_name": "others", "keep_best": True}
    assert len(make_model().fit(make_pairs(), Score(), **PAPER, **options, output_dir=finished).steps) == 18


def test_checkpoint_of_a_later_version_is_refused(finished):
    path = finished / "checkpoints" / "step-00000018" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(ValueError, match=r"step-00000018.*later freezealign; upgrade"):
        make_model().fit(make_pairs(), Score(), **PAPER, keep_best=True, output_dir=finished)


@pytest.mark.parametrize("leftover", ["step-00000099", ".step-00000099.tmp"])
def test_checkpoint_without_its_state_does_not_count(finished, leftover):
    """The state is written last, so that what lacks it was interrupted."""
    whole = finished / "checkpoints" / "step-00000018"
    shutil.copytree(whole, whole.with_name(leftover), ignore=shutil.ignore_patterns("state.json"))
    model = make_model()
    assert len(model.fit(make_pairs(), Score(), **PAPER, keep_best=True, output_dir=finished).steps) == 18


FILES = ["weights.safetensors", "optimizer.safetensors", "generators-0.safetensors", "best.safetensors", "state.json"]


@pytest.mark.parametrize("damage", ["cut", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_damaged_checkpoint_is_refused_by_name(finished, name, damage):
    path = finished / "checkpoints" / "step-00000018" / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif name == "state.json":
        path.write_text("{}")
    else:
        path.unlink()
    model = make_model()
    before = trained(model)
    with pytest.raises(ValueError, match=rf"step-00000018/{name}"):
        model.fit(make_pairs(), Score(), **PAPER, keep_best=True, output_dir=finished)
    assert all(torch.equal(value, before[key]) for key, value in trained(model).items())


ODD_STATES = {
    "no progress": lambda state: state.pop("progress"),
    "progress is a number": lambda state: state.update(progress=3),
    "step is a word": lambda state: state["progress"].update(step="18"),
    "epoch is a truth value": lambda state: state["progress"].update(epoch=True),
    "no batch": lambda state: state["progress"].pop("batch"),
    "best is a list": lambda state: state["progress"].update(best=[1]),
    "no scaler": lambda state: state.pop("scaler"),
    "steps is an object": lambda state: state.update(steps={}),
    "a step is a number": lambda state: state["steps"].append(3),
    "a step has no loss": lambda state: state["steps"][4].pop("loss"),
    "a loss is a word": lambda state: state["steps"][4].update(loss="low"),
    "evaluations is a word": lambda state: state.update(evaluations="none"),
    "an evaluation has no step": lambda state: state["evaluations"][0].pop("step"),
    "the version is a word": lambda state: state.update(format_version="1"),
}


@pytest.mark.parametrize("kind", ODD_STATES)
def test_odd_state_is_refused_by_name(finished, kind):
    path = finished / "checkpoints" / "step-00000018" / "state.json"
    state = json.loads(path.read_text())
    ODD_STATES[kind](state)
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"step-00000018/state\.json: .*not what freezealign writes"):
        make_model().fit(make_pairs(), Score(), **PAPER, keep_best=True, output_dir=finished)


ODD_TENSORS = {
    "NaN": lambda value: torch.full_like(value, torch.nan),
    "infinity": lambda value: torch.full_like(value, -torch.inf),
    "another shape": lambda value: torch.zeros(3, 3, 3),
    "nothing": None,
}


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "best.safetensors"])
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_checkpoint_of_odd_tensors_is_refused_by_name(finished, name, kind):
    path = finished / "checkpoints" / "step-00000018" / name
    tensors = load_file(path)
    key = sorted(tensors)[0]
    value = tensors.pop(key)
    tensors |= {key: ODD_TENSORS[kind](value)} if ODD_TENSORS[kind] else {f"other.{key}": value}
    save_file(tensors, path)
    model = make_model()
    before = trained(model)
    with pytest.raises(ValueError, match=rf"{name} holds .*; remove that folder to go on from an earlier checkpoint"):
        model.fit(make_pairs(), Score(), **PAPER, keep_best=True, output_dir=finished)
    assert all(torch.equal(value, before[name]) for name, value in trained(model).items())


@pytest.mark.parametrize("value", [0.0, -1.0, 0.6])
def test_checkpoint_of_an_odd_temperature_is_refused(finished, value):
    path = finished / "checkpoints" / "step-00000018" / "weights.safetensors"
    save_file({**load_file(path), "logit_scale.temperature": torch.tensor(value)}, path)
    model = make_model()
    with pytest.raises(ValueError, match=rf"step-00000018: the temperature is {value}"):
        model.fit(make_pairs(), Score(), **PAPER, keep_best=True, output_dir=finished)
    assert model.logit_scale.temperature.item() == pytest.approx(0.07)


def other_pictures(pairs):
    return [(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), text) for image, text in pairs]


OTHER_DATA = {
    "other captions": lambda pairs: [(image, f"another {text}") for image, text in pairs],
    "other pictures": other_pictures,
    "another order": lambda pairs: pairs[::-1],
    "one pair edited": lambda pairs: [*pairs[:-1], (pairs[-1][0], "something else")],
}


@pytest.mark.parametrize("form", ["pairs", "store in memory", "store on disk", "online"])
@pytest.mark.parametrize("change", OTHER_DATA)
@pytest.mark.parametrize("schedule", ["auto", "paper"])
def test_run_on_other_data_of_the_same_size_is_refused(callable_model, images, tmp_path, change, form, schedule):
    pairs = [(image, f"picture {number}") for number, image in enumerate(images)]
    options = {"output_dir": tmp_path / "run", "schedule": schedule, "epochs": 1, "batch_size": 4, **QUIET}
    options |= {"init": "random", "cache_features": False} if form == "online" else {}

    def run(data, name):
        if form.startswith("store"):
            data = callable_model.extract_features(data, tmp_path / name if form.endswith("disk") else None, **QUIET)
        return copy.deepcopy(callable_model).fit(data, **options)

    first = run(pairs, "first")
    assert run(pairs, "first").losses == first.losses
    with pytest.raises(ValueError, match=r"begun with data = .*another folder"):
        run(OTHER_DATA[change](pairs), "second")
