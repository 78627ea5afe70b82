"""Several evaluators as one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from freezealign import (
    CKAEvaluator,
    LongContextEvaluator,
    RetrievalEvaluator,
    SegmentationEvaluator,
    SequentialEvaluator,
    ZeroShotClassificationEvaluator,
)
from freezealign.evaluation import Evaluator, SlidingWindows

QUIET = {"show_progress_bar": False}


@pytest.fixture
def evaluators(images, texts):
    return [
        RetrievalEvaluator(images, texts, name="retrieval", **QUIET),
        ZeroShotClassificationEvaluator(images, [0, 1] * 6, ["apple", "car"], name="classes", **QUIET),
        CKAEvaluator(images, texts, name="cka", **QUIET),
    ]


def test_results_are_those_of_all(model, evaluators):
    together = SequentialEvaluator(evaluators)(model)
    apart = {key: value for evaluator in evaluators for key, value in evaluator(model).items()}
    assert together == pytest.approx(apart, nan_ok=True)


def test_first_evaluator_decides(evaluators):
    assert SequentialEvaluator(evaluators).primary_metric == "retrieval_t2i_R@1"
    assert SequentialEvaluator(evaluators[1:]).primary_metric == "classes_top1"


def test_each_writes_into_a_folder_of_its_own(model, evaluators, tmp_path):
    SequentialEvaluator(evaluators)(model, tmp_path, epoch=2)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")} == {
        "retrieval/retrieval.json",
        "classes/classes.json",
        "classes/confusion.png",
        "cka/cka.json",
    }


def test_works_inside_fit(model, pairs, evaluators):
    history = model.fit(
        pairs, evaluator=SequentialEvaluator(evaluators), epochs=1, batch_size=6, init="random", show_progress_bar=False
    )
    assert {"retrieval_t2i_R@1", "classes_top1", "cka_cka"} <= set(history.evaluations[-1])


@pytest.mark.parametrize("number", [0, 2])
def test_names_tell_metrics_apart(images, texts, number):
    with pytest.raises(ValueError, match="all different"):
        SequentialEvaluator([RetrievalEvaluator(images, texts, name="same")] * number)


# What each is called with


class Fixed(Evaluator):
    """An evaluator that says what it is told to, and what it was called with."""

    languages, columns = [""], ["score"]

    def __init__(self, name: str, score: float, greater_is_better: bool = True) -> None:
        super().__init__(name)
        self.score, self.greater_is_better = score, greater_is_better
        self.calls: list[tuple] = []

    def __call__(self, model, output_path=None, epoch=-1, steps=-1):
        self.calls.append((output_path, epoch, steps))
        return super().__call__(model, output_path, epoch, steps)

    def evaluate(self, model, folder=None):
        return {"score": self.score}


def test_first_ones_primary_metric_decides():
    both = SequentialEvaluator([Fixed("a", 0.25, greater_is_better=False), Fixed("b", 0.5)])
    assert both.primary_metric == "a_score"
    assert not both.greater_is_better
    assert SequentialEvaluator([Fixed("b", 0.5), Fixed("a", 0.25, greater_is_better=False)]).greater_is_better


def test_each_is_called_with_a_folder_of_its_own(tmp_path):
    first, second = Fixed("a", 0.25), Fixed("", 0.5)
    SequentialEvaluator([first, second])(None, tmp_path, 2, 30)
    assert (first.calls, second.calls) == ([(tmp_path / "a", 2, 30)], [(tmp_path / "Fixed", 2, 30)])
    assert json.loads((tmp_path / "a" / "a.json").read_text()) == {"epoch": 2, "steps": 30, "a_score": 0.25}


def test_without_a_folder_none_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = Fixed("a", 0.25)
    SequentialEvaluator([first])(None)
    assert first.calls == [(None, -1, -1)]
    assert list(tmp_path.iterdir()) == []


def test_sequence_may_hold_a_sequence(tmp_path):
    inner = SequentialEvaluator([Fixed("a", 0.25), Fixed("b", 0.5)], "inner")
    outer = SequentialEvaluator([inner, Fixed("c", 0.75)])
    assert outer(None, tmp_path) == {"a_score": 0.25, "b_score": 0.5, "c_score": 0.75}
    assert outer.primary_metric == "a_score"
    assert (tmp_path / "inner" / "b" / "b.json").is_file()


# All kinds on a real model


@pytest.fixture
def all_kinds(evaluators, images, texts) -> list[Evaluator]:
    masks = [np.arange(image.width)[None].repeat(image.height, 0) % 4 for image in images[:2]]
    shared = {"class_names": ["apple", "car", "dog"], "windows": SlidingWindows(28, 28, 28), **QUIET}
    return [
        *evaluators,
        LongContextEvaluator(images, texts, "long", budgets=(2, 8), **QUIET),
        SegmentationEvaluator(images[:2], masks, name="masks", **shared),
        SegmentationEvaluator(images[:2], masks, name="masks2", protocol="freeze-align", **shared),
    ]


def test_all_kinds_work_on_one_model(model, all_kinds, tmp_path):
    results = SequentialEvaluator(all_kinds)(model, tmp_path)
    for evaluator in all_kinds:
        metric = evaluator.primary_metric
        assert results[f"{metric}_low"] <= results[metric] <= results[f"{metric}_high"]
        assert results[f"{metric}_chance"] < 0.9
        assert results[f"{evaluator.name}_protocol"]
        assert any(key.startswith(f"{evaluator.name}_n") for key in results)
        written = json.loads((tmp_path / evaluator.name / f"{evaluator.name}.json").read_text())
        assert written[metric] == results[metric]
    for picture in ("long/curve.png", "classes/confusion.png", "masks/overlays.png", "masks2/overlays.png"):
        with Image.open(tmp_path / picture) as opened:
            opened.load()
    assert set(model.model_card_data.evaluations) == {evaluator.name for evaluator in all_kinds}


def test_sequence_decides_in_training(model, pairs, all_kinds):
    several = SequentialEvaluator(all_kinds)
    history = model.fit(pairs, several, schedule="paper", epochs=2, batch_size=6, keep_best=True, **QUIET)
    assert len(history.evaluations) == 2
    for found in history.evaluations:
        assert {evaluator.primary_metric for evaluator in all_kinds} <= set(found)
    best = max(found["retrieval_t2i_R@1"] for found in history.evaluations)
    assert all_kinds[0](model)["retrieval_t2i_R@1"] == best
