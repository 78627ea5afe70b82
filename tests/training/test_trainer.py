"""The training loop: what it guards against, what it keeps, what it says."""

from __future__ import annotations

import copy
import io
import json
import logging
import math

import numpy as np
import pytest
import torch
from runs import QUIET, Score, make_model, make_pairs, trained
from safetensors.torch import load_file

from freezealign import FitArguments, FreezeAlign, FrozenEncoder, Pooling, RetrievalEvaluator, TokenProjector
from freezealign.training import checkpoints
from freezealign.training import trainer as trainer_module
from freezealign.training.objective import neighbourhood_loss
from freezealign.training.plan import make_plan

PAPER = {"schedule": "paper", "epochs": 3, "batch_size": 6, **QUIET}


class Scores:
    """An evaluator that says what it is told to, one score after another."""

    primary_metric = "score"

    def __init__(self, *scores: float, greater_is_better: bool = True) -> None:
        self.scores, self.greater_is_better, self.weights = iter(scores), greater_is_better, []

    def __call__(self, model, output_path=None, epoch=-1, steps=-1) -> dict[str, float]:
        self.weights.append(trained(model))
        return {"score": next(self.scores)}


def same_weights(model, weights) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in trained(model).items())


# Loss or gradient that is not finite


def break_at(model, step: int, value: float = math.nan) -> None:
    """Make the shared space of the first tower ``value`` at one step."""
    steps = iter(range(1, 1000))

    def spoil(module, _, output):
        if module.training and next(steps) == step:
            return {**output, "vector": output["vector"] * value}
        return output

    model.register_forward_hook(spoil)


def test_nan_names_the_step_and_the_last_checkpoint_and_spares_the_weights(tmp_path):
    model = make_model()
    break_at(model, 8)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 8\..*last good checkpoint: .*step-00000006"):
        model.fit(make_pairs(), **PAPER, output_dir=tmp_path)
    assert all(value.isfinite().all() for value in trained(model).values())
    saved = load_file(tmp_path / "checkpoints" / "step-00000006" / "weights.safetensors")
    assert all(value.isfinite().all() for value in saved.values())


def test_nan_says_that_there_is_no_checkpoint():
    model = make_model()
    break_at(model, 2)
    with pytest.raises(FloatingPointError, match="none was kept"):
        model.fit(make_pairs(), **PAPER)


@pytest.mark.parametrize("clip_norm", [1.0, None])
def test_gradient_that_is_not_finite_spares_the_weights(clip_norm):
    """The loss is finite, its gradient is not."""
    model = make_model()
    parameter = next(p for p in model.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * math.inf)
    before = trained(model)
    with pytest.raises(FloatingPointError, match=r"norm of the gradient is (nan|inf) at step 1"):
        model.fit(make_pairs(), **PAPER, clip_norm=clip_norm)
    assert same_weights(model, before)


# The optimiser


@pytest.mark.parametrize("clip_norm", [1e-3, 0.5, None])
def test_clipping_bounds_the_gradient(monkeypatch, clip_norm):
    model, norms = make_model(), []
    original = torch.optim.AdamW.step

    def step(optimizer, *args, **kwargs):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        return original(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    model.fit(make_pairs(), **PAPER, clip_norm=clip_norm)
    assert max(norms) <= clip_norm * 1.001 if clip_norm else max(norms) > 1


def test_bf16_trains_weights_that_stay_float32():
    model, other = make_model(), make_model()
    losses = model.fit(make_pairs(), **PAPER, precision="bf16").losses
    exact = other.fit(make_pairs(), **PAPER).losses
    assert losses != exact and losses == pytest.approx(exact, rel=0.05)
    assert {value.dtype for value in trained(model).values()} == {torch.float32}


def test_fp16_scale_is_kept_in_checkpoints(tmp_path, monkeypatch):
    original = torch.amp.GradScaler
    monkeypatch.setattr(
        trainer_module.torch.amp,
        "GradScaler",
        lambda device, enabled: original(device, init_scale=2.0**10, growth_interval=4, enabled=enabled),
    )
    options = {**PAPER, "precision": "fp16", "save_every": 3, "keep_checkpoints": 9, "output_dir": tmp_path}
    whole = make_model()
    losses = whole.fit(make_pairs(), **options).losses
    scales = {
        int(path.name[5:]): checkpoints.read_state(path, True)["scaler"]
        for path in (tmp_path / "checkpoints").glob("step-*")
    }
    assert scales[3]["scale"] == 2.0**10 and scales[18]["scale"] > 2.0**10 and scales[3]["_growth_tracker"] == 3
    for path in (tmp_path / "checkpoints").glob("step-*"):
        if path.name > "step-00000009":
            checkpoints.shutil.rmtree(path)
    again = make_model()
    assert again.fit(make_pairs(), **options).losses == losses
    assert same_weights(again, trained(whole))
    assert checkpoints.read_state(tmp_path / "checkpoints" / "step-00000018", True)["scaler"] == scales[18]


def test_model_on_the_cpu_trains_after_one_on_an_accelerator(monkeypatch):
    """Accelerate keeps the first device for good; here it thinks that it has a GPU."""
    from accelerate.state import AcceleratorState, PartialState

    make_model().fit(make_pairs(), **PAPER)
    for state in (PartialState, AcceleratorState):
        monkeypatch.setitem(state._shared_state, "device", torch.device("cuda"))
    assert len(make_model().fit(make_pairs(), **PAPER).steps) == 18


# Evaluation


def test_evaluator_is_called_every_so_many_steps_and_at_the_end():
    history = make_model().fit(make_pairs(), Score(), **PAPER, evaluate_every=5)
    assert [(row["step"], row["epoch"]) for row in history.evaluations] == [(5, 1), (10, 2), (15, 3), (18, 3)]


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_best_weights_are_the_ones_to_end_with(greater_is_better):
    scores = [0.1, 0.9, 0.3] if greater_is_better else [0.9, 0.1, 0.3]
    model, evaluator = make_model(), Scores(*scores, greater_is_better=greater_is_better)
    model.fit(make_pairs(), evaluator, **PAPER, keep_best=True)
    assert same_weights(model, evaluator.weights[1])
    assert not same_weights(model, evaluator.weights[2])


def test_last_weights_are_the_ones_to_end_with_by_default():
    model, evaluator = make_model(), Scores(0.1, 0.9, 0.3)
    model.fit(make_pairs(), evaluator, **PAPER)
    assert same_weights(model, evaluator.weights[2])


def test_patience_ends_the_training():
    scores = Scores(0.1, 0.5, 0.4, 0.5, 0.3, 9.0)
    history = make_model().fit(make_pairs(), scores, **{**PAPER, "epochs": 6}, patience=3)
    assert [row["score"] for row in history.evaluations] == [0.1, 0.5, 0.4, 0.5, 0.3]
    assert len(history.steps) == 5 * 6


def test_patience_counts_from_the_best():
    scores = Scores(0.1, 0.0, 0.2, 0.1, 0.3, 0.2)
    history = make_model().fit(make_pairs(), scores, **{**PAPER, "epochs": 6}, patience=2)
    assert len(history.evaluations) == 6


@pytest.mark.parametrize("options", [{"keep_best": True}, {"patience": 1}])
@pytest.mark.parametrize("evaluator", [None, lambda model, **_: {"score": 1.0}])
@pytest.mark.parametrize("init", ["random", "closed-form"])
def test_evaluator_without_a_metric_is_refused_before_training(options, evaluator, init):
    model = make_model()
    before = trained(model)
    with pytest.raises(ValueError, match=r"keep_best and patience need an evaluator.*primary_metric"):
        model.fit(make_pairs(), evaluator, **PAPER, **options, init=init)
    assert same_weights(model, before)


def test_metric_that_is_not_among_the_scores_is_named():
    evaluator = Score()
    evaluator.primary_metric = "ndcg"
    with pytest.raises(ValueError, match="primary_metric is among its results; it is 'ndcg'"):
        make_model().fit(make_pairs(), evaluator, **PAPER, keep_best=True)


def test_our_evaluator_can_choose_the_best(callable_model, images, texts):
    evaluator = RetrievalEvaluator(images, texts, name="dev", show_progress_bar=False)
    history = callable_model.fit(list(zip(images, texts)), evaluator, **PAPER, keep_best=True)
    best = max(row[evaluator.primary_metric] for row in history.evaluations)
    assert evaluator(callable_model)[evaluator.primary_metric] == best


# What one sees


def test_tracker_gets_the_curves(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = make_model().fit(make_pairs(), Score(), **PAPER, output_dir=tmp_path, report_to=("tensorboard",))
    events = [path for path in tmp_path.rglob("events.out.tfevents*") if path.stat().st_size > 500]
    found = EventAccumulator(str(events[0].parent)).Reload()
    assert [event.value for event in found.Scalars("loss")] == pytest.approx(history.losses)
    assert [event.step for event in found.Scalars("score")] == [6, 12, 18]
    assert {"temperature", "learning_rate"} <= set(found.Tags()["scalars"])


def test_bar_shows_loss_temperature_and_pairs_a_second(monkeypatch):
    from tqdm.auto import tqdm

    bars = []

    class Bar(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "delay": 0, "file": io.StringIO()})
            bars.append(self)

        def close(self):
            self.text = getattr(self, "text", str(self))
            super().close()

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    history = make_model().fit(make_pairs(), **{**PAPER, "show_progress_bar": True})
    text = next(bar.text for bar in bars if bar.desc == "Training")
    last = history.steps[-1]
    assert f"loss={last['loss']:.3f}" in text and f"temperature={last['temperature']:.3f}" in text
    assert "pair/s" in text and "108/108" in text


# The structure loss


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_structure_of_identical_spaces_does_not_differ():
    x = random(20, 6)
    assert neighbourhood_loss(x, x).item() == pytest.approx(0, abs=1e-12)


def test_structure_does_not_change_under_rotation_scale_and_shift():
    x, y = random(20, 6), random(20, 4, seed=1)
    rotation = torch.linalg.qr(random(4, 4, seed=2)).Q
    assert neighbourhood_loss(x, 3 * y @ rotation + 5).item() == pytest.approx(
        neighbourhood_loss(x, y).item(), abs=1e-10
    )


def test_structure_loss_is_a_divergence_of_neighbourhoods():
    """Jensen–Shannon, row by row, in plain loops; symmetric, above 0, no larger than log 2."""
    x, y = random(8, 6), random(8, 4, seed=1)

    def neighbours(vectors):
        unit = vectors - vectors.mean(0)
        unit = (unit / unit.norm(dim=1, keepdim=True)).numpy()
        found = []
        for i in range(8):
            weights = np.array([math.exp(unit[i] @ unit[j] / 0.05) for j in range(8) if j != i])
            found.append(weights / weights.sum())
        return found

    expected = np.mean([
        sum(p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q)) for p, q in zip(a, b)) / 2
        for a, b in zip(neighbours(x), neighbours(y))
    ])  # fmt: skip
    assert neighbourhood_loss(x, y).item() == pytest.approx(expected, rel=1e-9)
    assert neighbourhood_loss(y, x).item() == pytest.approx(expected, rel=1e-9)
    assert 0 < expected < math.log(2)


def test_gradient_of_the_structure_loss_is_right():
    y = random(7, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: neighbourhood_loss(random(7, 6), y, temperature=0.3), [y])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_structure_loss_is_computed_in_float32_under_autocast(dtype):
    x, y = random(30, 16).to(dtype), random(30, 8, seed=1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = neighbourhood_loss(x, y)
    assert found.item() == pytest.approx(neighbourhood_loss(x.double(), y.double()).item(), rel=1e-4)


@pytest.mark.parametrize("n", [1, 2])
def test_structure_of_one_or_two_is_always_the_same(n):
    assert neighbourhood_loss(random(n, 4), random(n, 4, seed=1)).item() == pytest.approx(0, abs=1e-9)


def test_training_with_the_structure_loss_keeps_neighbourhoods():
    data = make_pairs(60)
    plain, kept = make_model(dropout=0.0), make_model(dropout=0.0)
    options = {**PAPER, "epochs": 30, "batch_size": 60, "learning_rate": 1e-2}
    plain.fit(data, **options)
    kept.fit(data, **options, structure_weight=5.0)
    vectors = [vector for vector, _ in data]
    distance = [
        neighbourhood_loss(
            torch.from_numpy(np.stack(vectors)), fitted.encode(vectors, modality="vector", convert_to_tensor=True)
        )
        for fitted in (plain, kept)
    ]
    assert distance[1] < 0.7 * distance[0]


# The sigmoid loss


def test_sigmoid_adds_a_bias_that_is_trained_and_saved(model, pairs, tmp_path):
    history = model.fit(pairs, **PAPER, loss="sigmoid")
    bias = model.logit_scale.bias.item()
    assert bias != -10 and len(history.steps) == 6
    model.save_pretrained(tmp_path / "model")
    loaded = FreezeAlign.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.logit_scale.bias.item() == bias
    again = copy.deepcopy(loaded)
    again.fit(pairs, **PAPER, loss="sigmoid", learning_rate=0.0, final_learning_rate=0.0)
    assert again.logit_scale.bias.item() == bias


# What is chosen

OPEN = ("init", "epochs", "batch_size", "learning_rate", "structure_weight")
PLANS = {
    "small": (9_999, ("closed-form", 0, 512, 1e-3, 0.0), "9,999 pairs"),
    "medium": (10_000, ("closed-form", 10, 4096, 3e-4, 1.0), "10,000 pairs"),
    "large": (100_000, ("random", 20, 8192, 1e-3, 0.0), "100,000 pairs"),
    "unknown": (None, ("random", 20, 512, 1e-3, 0.0), "an unknown number of pairs"),
}


def values(arguments: FitArguments) -> tuple:
    return tuple(getattr(arguments, name) for name in OPEN)


@pytest.mark.parametrize("size", PLANS)
def test_number_of_pairs_decides(size):
    pairs, expected, reason = PLANS[size]
    plan = make_plan(make_model(), None, pairs, True, FitArguments())
    assert values(plan.arguments) == expected
    assert reason in plan.reasons and all(f"{name}={value}" in plan.reasons for name, value in zip(OPEN, expected))


@pytest.mark.parametrize("size", PLANS)
def test_paper_is_the_paper_whatever_the_data(size):
    plan = make_plan(make_model(), None, PLANS[size][0], True, FitArguments(schedule="paper"))
    assert values(plan.arguments) == ("random", 20, 512, 1e-3, 0.0)


@pytest.mark.parametrize("size", PLANS)
@pytest.mark.parametrize(
    ("name", "value"), [("init", "random"), ("epochs", 3), ("batch_size", 7), ("learning_rate", 0.5)]
)
def test_what_is_stated_wins(size, name, value):
    for schedule in ("auto", "paper"):
        plan = make_plan(make_model(), None, PLANS[size][0], True, FitArguments(schedule=schedule, **{name: value}))
        assert getattr(plan.arguments, name) == value
        assert f"{name}=" not in plan.reasons.split(": ", 1)[1]


@pytest.mark.parametrize("pairs", [500, 50_000])
def test_model_without_a_closed_form_is_trained_as_in_the_paper(pairs):
    def tower(modality):
        ones = FrozenEncoder(lambda items: np.ones((len(items), 4), np.float32), modality)
        return [ones, TokenProjector(4, 8, kind="mlp"), Pooling("mean")]

    model = FreezeAlign({"image": tower("image"), "text": tower("text")}, device="cpu")
    plan = make_plan(model, None, pairs, True, FitArguments())
    assert values(plan.arguments) == ("random", 20, 512, 1e-3, 0.0)
    assert "would suit the closed form, but" in plan.reasons


@pytest.mark.parametrize("pairs", [500, 50_000])
def test_random_start_that_is_asked_for_is_trained(pairs):
    """The closed form's epochs and rate are nothing for projectors that do not start there."""
    plan = make_plan(make_model(), None, pairs, True, FitArguments(init="random"))
    assert values(plan.arguments) == ("random", 20, 512, 1e-3, 0.0)
    assert "init='random'" in plan.reasons


def test_uncached_data_is_not_begun_with_the_closed_form():
    plan = make_plan(make_model(), None, 500, False, FitArguments())
    assert plan.arguments.init == "random" and "cache_features=True" in plan.reasons


def test_choice_is_explained_in_history_log_and_card(model, pairs, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="freezealign"):
        history = model.fit(pairs, **QUIET)
    assert "12 pairs" in history.plan and "init=closed-form" in history.plan and "epochs=0" in history.plan
    assert history.plan in caplog.text
    model.save_pretrained(tmp_path / "model")
    assert history.plan in (tmp_path / "model" / "README.md").read_text()


# Arguments


def test_identity_is_json_and_leaves_out_what_is_neutral():
    identity = FitArguments(weights=(1.0, 0.5), output_dir="here").identity()
    assert json.loads(json.dumps(identity)) == identity
    assert "output_dir" not in identity and identity["weights"] == [1.0, 0.5]
