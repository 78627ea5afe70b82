"""Several evaluators as one."""

from __future__ import annotations

import pytest

from freezealign import CKAEvaluator, RetrievalEvaluator, SequentialEvaluator, ZeroShotClassificationEvaluator

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
