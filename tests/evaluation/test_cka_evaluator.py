"""CKA of a model's image and text embeddings: the alignment measures of what it encodes, in one language or many."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from freezealign import CKAEvaluator, FreezeAlign, FrozenEncoder
from freezealign.alignment import MutualKNN, measure_alignment
from freezealign.encoders.callable import CallableEncoder

N = 40


class Known:
    """A model that knows the embedding of everything: items are rows, texts name them."""

    def __init__(self, images: np.ndarray, texts: np.ndarray, unit: bool = True) -> None:
        sides = (torch.as_tensor(side, dtype=torch.float32) for side in (images, texts))
        self.images, self.texts = (normalize(side, dim=-1) if unit else side for side in sides)

    def encode_image(self, items, **_):
        return self.images[torch.tensor([int(item) for item in items])]

    def encode_text(self, items, **_):
        return self.texts[torch.tensor([int(item) for item in items])]


def vectors(seed: int, n: int = N, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width))


def related(n: int = N) -> Known:
    images = vectors(0, n)
    return Known(images, images + vectors(1, n))


def evaluate(model, images, captions, **options):
    return CKAEvaluator(images, captions, show_progress_bar=False, **options)(model)


def names(n: int = N) -> list[str]:
    return [str(number) for number in range(n)]


def measured(x, y, metric: str = "cka", **options) -> dict[str, float]:
    score = measure_alignment(x, y, metric, show_progress_bar=False, **options)
    keys = ("low", "high", "chance", "calibrated", "p_value")
    return {metric: score.value, **{f"{metric}_{key}": getattr(score, key) for key in keys}}


# Values


def test_scores_are_the_measures_of_the_embeddings():
    model = related()
    results = evaluate(model, range(N), names())
    assert isinstance(results.pop("protocol"), str)
    assert results.pop("n") == N
    found = {
        "cka": measured(model.images, model.texts),
        "mutual_knn": measured(model.images, model.texts, "mutual_knn"),
    }
    for metric, expected in found.items():
        assert results[metric] == pytest.approx(expected[metric], abs=1e-6)
    assert results == pytest.approx(found["cka"] | found["mutual_knn"], abs=0.05)  # which shuffles, rounding decides
    assert results["cka_low"] < results["cka"] < results["cka_high"] and results["cka_p_value"] < 0.01


def test_scores_are_those_of_a_models_embeddings(model, images, texts):
    results = evaluate(model, images, texts, metrics=("rsa", "cka"))
    embeddings = model.encode_image(images), model.encode_text(texts)
    for metric in ("rsa", "cka"):
        assert results[metric] == pytest.approx(measured(*embeddings, metric)[metric], abs=1e-5)
    assert "mutual_knn" not in results


def test_oracle_reads_one():
    results = evaluate(Known(vectors(0), vectors(0)), range(N), names(), metrics=("cka", "mutual_knn", "procrustes"))
    for metric in ("cka", "mutual_knn", "procrustes"):
        assert results[metric] == pytest.approx(1, abs=1e-5)
        assert results[f"{metric}_calibrated"] == pytest.approx(1, abs=1e-4)


def test_random_model_is_at_chance():
    results = evaluate(Known(vectors(0, 400), vectors(1, 400)), range(400), names(400))
    for metric in ("cka", "mutual_knn"):
        assert results[metric] == pytest.approx(results[f"{metric}_chance"], abs=0.02)
        assert results[f"{metric}_calibrated"] < 0.01 and results[f"{metric}_p_value"] > 0.01


def test_lengths_of_a_models_embeddings_do_not_count():
    scaled = vectors(0) * np.arange(1, N + 1)[:, None]
    assert evaluate(Known(scaled, scaled, unit=False), range(N), names())["cka"] == pytest.approx(1, abs=1e-5)


# Captions


def test_several_captions_count_as_their_mean():
    texts = vectors(1, 3 * N)
    captions = [[str(3 * number + k) for k in range(1 + number % 3)] for number in range(N)]
    model = Known(vectors(0), texts)
    means = torch.stack([normalize(model.encode_text(several).mean(0), dim=0) for several in captions])
    results = evaluate(model, range(N), captions)
    assert results["n"] == N
    assert results["cka"] == pytest.approx(measured(model.images, means)["cka"], abs=1e-6)


def test_images_without_a_caption_are_left_out():
    model = related()
    captions = [None if number % 5 == 0 else [] if number % 7 == 0 else str(number) for number in range(N)]
    kept = [number for number in range(N) if captions[number]]
    results = evaluate(model, range(N), captions)
    assert results["n"] == len(kept) < N
    assert results["cka"] == pytest.approx(measured(model.images[kept], model.texts[kept])["cka"], abs=1e-6)


def test_languages_are_evaluated_apart():
    model = related()
    captions = {"en": names(), "de": [None, *names()[1:]], "xx": names()[::-1]}
    results = evaluate(model, range(N), captions, name="emoji")
    assert all(key.startswith("emoji_") for key in results)
    assert (results["emoji_en_n"], results["emoji_de_n"]) == (N, N - 1)
    for language, x, y in [
        ("en", model.images, model.texts),
        ("de", model.images[1:], model.texts[1:]),
        ("xx", model.images, model.texts.flip(0)),
    ]:
        assert results[f"emoji_{language}_cka"] == pytest.approx(measured(x, y)["cka"], abs=1e-6)
    assert results["emoji_en_cka"] > results["emoji_xx_cka"]


def test_primary_metric_is_the_first_of_the_first_language():
    evaluator = CKAEvaluator(
        range(N), {"de": names(), "en": names()}, "emoji", metrics=("mutual_knn", "cka"), show_progress_bar=False
    )
    assert evaluator.primary_metric == "emoji_de_mutual_knn" and evaluator.primary_metric in evaluator(related())
    assert evaluator.greater_is_better
    assert CKAEvaluator(range(N), names()).primary_metric == "cka"


# Output and errors


def test_results_are_written_as_json(tmp_path):
    evaluator = CKAEvaluator(range(N), names(), name="emoji", show_progress_bar=False)
    results = evaluator(related(), output_path=tmp_path / "new" / "folder", epoch=3, steps=40)
    written = json.loads((tmp_path / "new" / "folder" / "emoji.json").read_text())
    assert written == {"epoch": 3, "steps": 40, **results}


def test_results_of_few_images_are_json_too(tmp_path):
    CKAEvaluator(range(13), names(13), show_progress_bar=False)(related(13), output_path=tmp_path)
    constants: list[str] = []
    json.loads((tmp_path / "CKAEvaluator.json").read_text(), parse_constant=constants.append)
    assert constants == []


def test_scores_reach_the_model_card(model, images, texts, tmp_path):
    scores = evaluate(model, images, texts, name="emoji", metrics=("cka",))
    model.save_pretrained(tmp_path)
    assert f"| emoji_cka | {scores['emoji_cka']:.4g} |" in (tmp_path / "README.md").read_text()


def test_unknown_metric_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="no measure is called 'cak'; there are cka"):
        CKAEvaluator(range(N), names(), metrics=("cak",))


@pytest.mark.parametrize(
    ("captions", "message"),
    [(["a"], "40 images but 1 captions"), ({"de": ["a"]}, "1 captions in de"), ([None] * N, "no caption")],
)
def test_captions_that_do_not_fit_are_refused(captions, message):
    with pytest.raises(ValueError, match=message):
        CKAEvaluator(range(N), captions)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="at least 12 items are needed, got 11"):
        evaluate(related(), range(11), names(11))


def test_model_to_which_everything_is_alike_is_refused():
    with pytest.raises(ValueError, match="is constant"):
        evaluate(Known(np.ones((N, 8)), vectors(0)), range(N), names())


def test_no_metric_is_refused():
    with pytest.raises(ValueError, match="metric"):
        CKAEvaluator(range(N), names(), metrics=())


def test_measures_keep_their_options():
    try:
        chance = evaluate(related(), range(N), names(), metrics=(MutualKNN(3),))["mutual_knn_chance"]
    except (TypeError, ValueError):
        return  # to refuse them would do as well
    assert chance == pytest.approx(3 / (N - 1), abs=0.02)


# Frozen features, and training


def letters(items) -> np.ndarray:
    return np.stack([np.bincount([ord(c) % 16 for c in item], minlength=16).astype(np.float32) for item in items])


@pytest.fixture
def counted():
    """A model of texts and vectors of texts that notes what its encoders were given, and data for it."""
    seen: list = []

    def watched(items):
        seen.extend(items)
        return letters(items)

    encoders = {"image": FrozenEncoder(CallableEncoder(np.stack, "image", 6))}
    encoders["image"].read = lambda item: item
    encoders["text"] = FrozenEncoder(CallableEncoder(watched, "text", 16))
    model = FreezeAlign(encoders, recipe="pooled", dim=8, seed=0, device="cpu")
    rng = np.random.default_rng(0)
    captions = ["".join(rng.choice(list("abcdefghijklmno"), 12)) for _ in range(N)]
    images = list((letters(captions) @ rng.normal(size=(16, 6))).astype(np.float32))
    return model, images, captions, seen


def test_precomputed_evaluation_gives_the_same_scores(model, images, texts, tmp_path):
    captions = {"en": texts, "de": [[text, f"blue {text}"] if len(text) < 30 else None for text in texts]}
    expected = evaluate(model, images, captions, metrics=("cka",))
    evaluator = CKAEvaluator(images, captions, metrics=("cka",), show_progress_bar=False)
    results = evaluator.precompute(model, tmp_path)(model)
    assert results.keys() == expected.keys()
    for key in ("en_cka", "de_cka", "en_n", "de_n"):
        assert results[key] == pytest.approx(expected[key], abs=2e-3)  # features are kept in float16


def test_precomputed_evaluation_runs_no_encoder(counted):
    model, images, captions, seen = counted
    evaluator = CKAEvaluator(images, captions, show_progress_bar=False)
    expected = evaluator(model)
    evaluator.precompute(model)
    seen.clear()
    assert evaluator(model)["cka"] == pytest.approx(expected["cka"], abs=1e-5)
    assert seen == []


OPTIONS = {"batch_size": 20, "init": "random", "show_progress_bar": False, "seed": 0}


def test_training_evaluates_as_often_as_asked(counted):
    model, images, captions, _ = counted
    evaluator = CKAEvaluator(images, captions, name="train", metrics=("cka",), show_progress_bar=False)
    before = evaluator(model)["train_cka"]
    history = model.fit(
        list(zip(images, captions)), evaluator, evaluate_every=24, epochs=30, learning_rate=3e-3, **OPTIONS
    )
    assert [row["step"] for row in history.evaluations] == [24, 48, 60]
    assert history.evaluations[-1]["train_cka"] == pytest.approx(evaluator(model)["train_cka"], abs=1e-6)
    assert history.evaluations[-1]["train_cka"] > before


def test_best_evaluation_is_kept(counted):
    model, images, captions, _ = counted
    evaluator = CKAEvaluator(images, captions, metrics=("cka",), show_progress_bar=False)
    model.fit(list(zip(images, captions)), epochs=30, learning_rate=3e-3, **OPTIONS)
    options = {"epochs": 3, "evaluate_every": 1, "keep_best": True, "learning_rate": 1e-2}
    wrong = list(zip(images, captions[::-1]))  # at first it gets worse by them
    history = model.fit(wrong, evaluator, **options, **OPTIONS)
    scores = [row["cka"] for row in history.evaluations]
    assert len(scores) == 6 and scores[-1] < max(scores) - 0.01
    assert evaluator(model)["cka"] == pytest.approx(max(scores), abs=1e-6)
