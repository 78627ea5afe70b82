"""Retrieval in both directions, in one language or many."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from freezealign import FreezeAlign, FrozenEncoder, RetrievalEvaluator
from freezealign.evaluation import metrics
from freezealign.evaluation.metrics import bootstrap_interval
from freezealign.evaluation.retrieval import chance_recall, chance_reciprocal_rank
from freezealign.inputs import InputError


class Table:
    """A model that knows the embedding of everything, and nothing else."""

    def __init__(self, images: list, texts: dict[str, list]) -> None:
        self.images = torch.nn.functional.normalize(torch.tensor(images, dtype=torch.float32), dim=-1)
        self.texts = texts

    def encode_image(self, items, **_):
        return self.images[torch.tensor(list(items))]

    def encode_text(self, items, **_):
        return torch.nn.functional.normalize(torch.tensor([self.texts[i] for i in items], dtype=torch.float32), dim=-1)


class Random:
    """A model that knows nothing."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def encode_image(self, items, **_):
        return torch.nn.functional.normalize(torch.randn(len(items), 32, generator=self.generator), dim=-1)

    encode_text = encode_image


class Constant:
    """A model to which everything is alike."""

    def encode_image(self, items, **_):
        return torch.nn.functional.normalize(torch.linspace(0.1, 1, 24), dim=0).repeat(len(items), 1)

    encode_text = encode_image


def evaluate(model, images, captions, **options):
    return RetrievalEvaluator(images, captions, show_progress_bar=False, **options)(model)


# By hand. Images lie at 0, 90 and 180 degrees.

THREE = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]


def at(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def test_one_caption_an_image():
    # a: nearest is image 0 (right). b: 0, then 1 (right). c: 1, then 2 (right).
    model = Table(THREE, {"a": at(10), "b": at(40), "c": at(100)})
    scores = evaluate(model, range(3), ["a", "b", "c"], ks=(1, 2, 3))
    # Image 0: a (right). Image 1: c, then b (right). Image 2: c (right).
    assert (scores["t2i_R@1"], scores["t2i_R@2"]) == (pytest.approx(1 / 3), 1)
    assert (scores["i2t_R@1"], scores["i2t_R@2"]) == (pytest.approx(2 / 3), 1)
    assert (scores["t2i_median_rank"], scores["i2t_median_rank"]) == (2, 1)
    assert (scores["n_images"], scores["n_texts"]) == (3, 3)


def test_any_of_an_images_captions_is_right():
    # Image 0 has a far and a near caption; image 1 two far ones.
    model = Table(THREE[:2], {"far": at(170), "near": at(5), "x": at(-80), "y": at(20)})
    scores = evaluate(model, range(2), [["far", "near"], ["x", "y"]], ks=(1, 2, 3))
    # Image 0: near, y, ... Image 1: y (90-20=70 away), far (80 away), near (85 away), x.
    assert scores["i2t_R@1"] == 1
    # far: image 1 (wrong); near: image 0 (right); x: image 0 (wrong); y: image 0 (wrong).
    assert scores["t2i_R@1"] == pytest.approx(1 / 4)
    assert scores["n_texts"] == 4


def test_a_caption_shared_by_two_images_is_a_tie_against_the_model():
    model = Table(THREE[:2], {"a": at(0)})
    scores = evaluate(model, range(2), ["a", "a"], ks=(1,))
    # T2I: the first is right, the second wrong. I2T: each image has a wrong caption that scores the same.
    assert (scores["t2i_R@1"], scores["i2t_R@1"]) == (0.5, 0)


def test_perfect_model_has_recall_one():
    model = Table(THREE, {"a": at(1), "b": at(89), "c": at(178)})
    scores = evaluate(model, range(3), ["a", "b", "c"])
    assert {scores[f"{direction}_R@1"] for direction in ("t2i", "i2t")} == {1}


def test_constant_model_has_no_recall():
    scores = evaluate(Constant(), range(30), [[f"{i}", f"{i} again"] for i in range(30)])
    assert {scores[f"{d}_R@{k}"] for d in ("t2i", "i2t") for k in (1, 5, 10)} == {0}
    assert scores["t2i_median_rank"] == 30
    assert scores["i2t_median_rank"] == 59


def test_random_model_is_near_chance():
    scores = evaluate(Random(), range(300), [[f"{i}", f"{i} again", f"{i} more"] for i in range(300)])
    for key in ("t2i_R@1", "t2i_R@5", "t2i_R@10", "i2t_R@1", "i2t_R@5", "i2t_R@10"):
        assert scores[key] == pytest.approx(scores[f"{key}_chance"], abs=0.025), key
    assert scores["t2i_median_rank"] == pytest.approx(150, abs=25)


def test_model_of_nan_is_not_perfect():
    class Broken(Random):
        def encode_image(self, items, **_):
            return torch.full((len(items), 4), float("nan"))

        encode_text = encode_image

    assert evaluate(Broken(), range(5), list("abcde"))["t2i_R@1"] == 0


def test_recall_equals_clip_benchmarks_evaluation():
    """Their whole evaluation, through a loader, on random embeddings."""
    oracle = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(30, 8, generator=generator), torch.randn(90, 8, generator=generator)
    captions = [[f"{3 * i + j}" for j in range(3)] for i in range(30)]

    class Model:
        def encode_image(self, pixels, **_):
            return torch.nn.functional.normalize(images[torch.as_tensor(pixels).long()], dim=-1)

        def encode_text(self, tokens, **_):
            return torch.nn.functional.normalize(texts[torch.tensor([int(token) for token in tokens])], dim=-1)

    loader = [(torch.arange(start, start + 10), captions[start : start + 10]) for start in (0, 10, 20)]
    tokenizer = lambda words: torch.tensor([int(word) for word in words])  # noqa: E731
    theirs = oracle.evaluate(Model(), loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5])
    ours = evaluate(Model(), range(30), captions, ks=(1, 5))
    for k in (1, 5):
        assert ours[f"t2i_R@{k}"] == pytest.approx(theirs[f"image_retrieval_recall@{k}"])
        assert ours[f"i2t_R@{k}"] == pytest.approx(theirs[f"text_retrieval_recall@{k}"])


# Chance and intervals


@pytest.mark.parametrize(("k", "expected"), [(1, 0.1), (3, 0.3), (10, 1.0), (99, 1.0)])
def test_chance_with_one_right_item_is_k_out_of_all(k, expected):
    assert chance_recall(k, 10, np.ones(4)) == pytest.approx(expected)


def test_chance_by_hand_with_two_right_items():
    # Two of five are right; two drawn; both wrong with 3/5 * 2/4.
    assert chance_recall(2, 5, np.array([2])) == pytest.approx(1 - 3 / 5 * 2 / 4)


def test_chance_equals_simulation():
    generator = np.random.default_rng(0)
    positives = np.array([1, 2, 5, 3])
    hits = [(generator.permutation(20)[:4] < count).any() for count in positives for _ in range(5000)]
    assert chance_recall(4, 20, positives) == pytest.approx(np.mean(hits), abs=0.01)


def test_chance_knows_how_many_captions_an_image_has():
    scores = evaluate(Random(), range(4), [["a", "b", "c"], ["d"], ["e"], ["f"]], ks=(1,))
    assert scores["t2i_R@1_chance"] == pytest.approx(1 / 4)
    assert scores["i2t_R@1_chance"] == pytest.approx((3 / 6 + 3 * 1 / 6) / 4)


def test_recall_lies_in_its_interval():
    scores = evaluate(Random(), range(50), [str(i) for i in range(50)])
    for key in ("t2i_R@5", "i2t_R@10"):
        assert scores[f"{key}_low"] <= scores[key] <= scores[f"{key}_high"]
        assert scores[f"{key}_low"] < scores[f"{key}_high"]


def test_single_pair_can_be_evaluated():
    scores = evaluate(Table(THREE, {"a": at(1)}), range(1), ["a"], ks=(1,))
    assert scores["t2i_R@1"] == scores["t2i_R@1_chance"] == 1


# Languages


def test_languages_are_evaluated_apart():
    model = Table(THREE, {"a": at(1), "b": at(89), "c": at(178), "A": at(1), "B": at(170), "C": at(80)})
    scores = evaluate(model, range(3), {"en": ["a", "b", "c"], "de": ["A", "B", "C"]}, ks=(1,))
    assert (scores["en_t2i_R@1"], scores["de_t2i_R@1"]) == (1, pytest.approx(1 / 3))
    assert (scores["en_n_texts"], scores["de_n_texts"]) == (3, 3)


def test_images_without_a_caption_are_left_out():
    # With image 1 in the gallery, "c" at 100 degrees would find it; without, it finds image 2.
    model = Table(THREE, {"a": at(10), "c": at(100)})
    scores = evaluate(model, range(3), ["a", None, "c"], ks=(1,))
    assert (scores["t2i_R@1"], scores["n_images"], scores["n_texts"]) == (1, 2, 2)


def test_empty_list_of_captions_is_no_caption():
    model = Table(THREE, {"a": at(10), "c": at(100)})
    assert evaluate(model, range(3), [["a"], [], ["c"]], ks=(1,))["n_images"] == 2


def test_each_language_leaves_out_its_own():
    model = Table(THREE, {"a": at(10), "b": at(90), "c": at(100), "A": at(10), "C": at(170)})
    scores = evaluate(model, range(3), {"en": ["a", "b", "c"], "de": ["A", None, "C"]}, ks=(1,))
    assert (scores["en_n_images"], scores["de_n_images"]) == (3, 2)


def test_primary_metric_is_a_key_of_the_results():
    model = Table(THREE, {"a": at(1), "b": at(89), "c": at(178)})
    evaluator = RetrievalEvaluator(range(3), {"de": ["a", "b", "c"]}, name="emoji", ks=(2, 1), show_progress_bar=False)
    before = evaluator.primary_metric
    results = evaluator(model)
    assert before == evaluator.primary_metric == "emoji_de_t2i_R@2"
    assert evaluator.primary_metric in results
    assert evaluator.greater_is_better


# Options, output, errors


def test_name_is_put_in_front_of_everything():
    model = Table(THREE, {"a": at(1), "b": at(89), "c": at(178)})
    scores = evaluate(model, range(3), ["a", "b", "c"], name="emoji")
    assert all(key.startswith("emoji_") for key in scores)


def test_results_are_written_as_json(tmp_path):
    model = Table(THREE, {"a": at(1), "b": at(89), "c": at(178)})
    evaluator = RetrievalEvaluator(range(3), ["a", "b", "c"], name="emoji", show_progress_bar=False)
    results = evaluator(model, output_path=tmp_path / "new" / "folder", epoch=3, steps=40)
    written = json.loads((tmp_path / "new" / "folder" / "emoji.json").read_text())
    assert written == {"epoch": 3, "steps": 40, **results}


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate(Table(THREE, {"a": at(1), "b": at(89), "c": at(178)}), range(3), ["a", "b", "c"])
    assert list(tmp_path.iterdir()) == []


def test_protocol_is_named():
    scores = evaluate(Table(THREE, {"a": at(1), "b": at(89), "c": at(178)}), range(3), ["a", "b", "c"])
    assert "tie" in scores["protocol"]


def test_description_is_in_words():
    assert RetrievalEvaluator([0], ["a"], name="emoji").description == "Retrieval on emoji"


@pytest.mark.parametrize("captions", [["a", "b"], {"de": ["a", "b"]}])
def test_other_number_of_captions_is_refused(captions):
    with pytest.raises(ValueError, match="3 images but 2 captions"):
        RetrievalEvaluator(range(3), captions)


def test_language_with_another_number_of_captions_is_named():
    with pytest.raises(ValueError, match="2 captions in de"):
        RetrievalEvaluator(range(3), {"en": ["a", "b", "c"], "de": ["a", "b"]})


def test_no_caption_at_all_is_refused():
    with pytest.raises(ValueError, match="no caption"):
        RetrievalEvaluator(range(2), [None, None])


# On a real model


def test_scores_are_those_of_the_models_embeddings(model, images, texts):
    scores = evaluate(model, images, texts, ks=(1, 5))
    similarity = model.encode(texts) @ model.encode(images).T
    order = np.argsort(-similarity, axis=1)
    for k in (1, 5):
        assert scores[f"t2i_R@{k}"] == np.mean([i in order[i, :k] for i in range(12)])


def test_scores_reach_the_model_card(model, images, texts, tmp_path):
    scores = evaluate(model, images, texts, name="emoji")
    model.save_pretrained(tmp_path)
    assert f"| emoji_t2i_R@5 | {scores['emoji_t2i_R@5']:.4g} |" in (tmp_path / "README.md").read_text()


def test_frozen_features_stand_for_their_images(model, images, texts):
    store = model.extract_features(list(zip(images, texts)), show_progress_bar=False)
    assert evaluate(model, store["image"], texts) == pytest.approx(evaluate(model, images, texts))


def counting(modality: str, seen: list):
    def encoder(items):
        seen.extend(items)
        return np.stack([np.random.default_rng(len(str(item))).normal(size=4).astype(np.float32) for item in items])

    return FrozenEncoder(encoder, modality)


@pytest.fixture
def counted() -> tuple[FreezeAlign, list]:
    """A model that notes what its encoders were given."""
    seen: list = []
    model = FreezeAlign([counting("image", seen), counting("text", seen)], dim=8, seed=0, device="cpu")
    seen.clear()
    return model, seen


def test_precomputed_evaluation_gives_the_same_scores(model, images, texts):
    captions = {"en": texts, "de": [[text, f"blue {text}"] if len(text) < 20 else None for text in texts]}
    expected = evaluate(model, images, captions)
    evaluator = RetrievalEvaluator(images, captions, show_progress_bar=False).precompute(model)
    assert evaluator(model) == pytest.approx(expected)


def test_precomputed_evaluation_runs_no_encoder(counted, images, texts):
    model, seen = counted
    evaluator = RetrievalEvaluator(images, texts, show_progress_bar=False).precompute(model)
    seen.clear()
    evaluator(model)
    assert seen == []


def test_precomputed_features_are_found_again(counted, images, texts, tmp_path):
    model, seen = counted
    first = RetrievalEvaluator(images, texts, show_progress_bar=False).precompute(model, tmp_path)(model)
    seen.clear()
    again = RetrievalEvaluator(images, texts, show_progress_bar=False).precompute(model, tmp_path)(model)
    assert seen == []
    assert again == first


def test_precomputing_twice_changes_nothing(counted, images, texts):
    model, _ = counted
    evaluator = RetrievalEvaluator(images, texts, show_progress_bar=False)
    expected = evaluator(model)
    assert evaluator.precompute(model).precompute(model)(model) == expected


def test_precomputed_features_of_other_data_are_refused(counted, images, texts, tmp_path):
    model, _ = counted
    RetrievalEvaluator(images, texts, show_progress_bar=False).precompute(model, tmp_path)
    with pytest.raises(ValueError, match="12"):
        RetrievalEvaluator(images[:7], texts[:7], show_progress_bar=False).precompute(model, tmp_path)(model)


def test_precomputed_evaluation_refuses_a_model_with_other_encoders(model, callable_model, images, texts):
    evaluator = RetrievalEvaluator(images, texts, show_progress_bar=False).precompute(model)
    with pytest.raises(ValueError, match="made by another encoder"):
        evaluator(callable_model)


# Mean reciprocal rank


def test_mean_reciprocal_rank_by_hand():
    # As above: a is first, b second, c second; images 0 and 2 find theirs first, image 1 second.
    model = Table(THREE, {"a": at(10), "b": at(40), "c": at(100)})
    scores = evaluate(model, range(3), ["a", "b", "c"])
    assert scores["t2i_MRR"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert scores["i2t_MRR"] == pytest.approx((1 + 1 / 2 + 1) / 3)


def test_reciprocal_rank_is_that_of_the_best_caption():
    # Image 0: near, y, ... Image 1: y, far, near, x.
    model = Table(THREE[:2], {"far": at(170), "near": at(5), "x": at(-80), "y": at(20)})
    assert evaluate(model, range(2), [["near"], ["far", "x"]])["i2t_MRR"] == 1
    assert evaluate(model, range(2), [["far"], ["near", "x"]])["i2t_MRR"] == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_constant_model_has_the_lowest_reciprocal_rank():
    scores = evaluate(Constant(), range(30), [[f"{i}", f"{i} again"] for i in range(30)])
    assert scores["t2i_MRR"] == pytest.approx(1 / 30)
    assert scores["i2t_MRR"] == pytest.approx(1 / 59)


def test_reciprocal_rank_of_a_random_model_is_near_chance():
    scores = evaluate(Random(), range(300), [[f"{i}", f"{i} again", f"{i} more"] for i in range(300)])
    for key in ("t2i_MRR", "i2t_MRR"):
        assert scores[key] == pytest.approx(scores[f"{key}_chance"], abs=0.01)
        assert scores[f"{key}_low"] < scores[key] < scores[f"{key}_high"]


@pytest.mark.parametrize(("candidates", "positives"), [(1, 1), (2, 1), (4, 2), (5, 1), (5, 5), (6, 3), (6, 5)])
def test_chance_of_reciprocal_rank_is_the_mean_over_all_orders(candidates, positives):
    orders = list(itertools.permutations(range(candidates)))
    first = [next(place for place, item in enumerate(order, 1) if item < positives) for order in orders]
    expected = np.mean(1 / np.array(first))
    assert chance_reciprocal_rank(candidates, np.array([positives])) == pytest.approx(expected)


def test_chance_of_reciprocal_rank_with_one_right_item_is_the_harmonic_mean():
    assert chance_reciprocal_rank(1000, np.ones(3)) == pytest.approx(np.mean(1 / np.arange(1, 1001)))


@settings(max_examples=50)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), min_size=1, max_size=6))))
def test_chance_of_several_queries_is_the_mean_of_theirs(drawn):
    candidates, positives = drawn
    alone = [chance_reciprocal_rank(candidates, np.array([some])) for some in positives]
    assert chance_reciprocal_rank(candidates, np.array(positives)) == pytest.approx(np.mean(alone))


def test_chance_of_reciprocal_rank_equals_simulation():
    generator = np.random.default_rng(0)
    positives = np.array([1, 2, 5, 3])
    ranks = [generator.permutation(20)[:count].min() + 1 for count in positives for _ in range(5000)]
    assert chance_reciprocal_rank(20, positives) == pytest.approx(np.mean(1 / np.array(ranks)), abs=0.01)


# Edge cases


def test_ranks_beyond_the_gallery_are_reached_by_everything():
    scores = evaluate(Random(), range(3), list("abc"), ks=(1, 50))
    assert scores["t2i_R@50"] == scores["t2i_R@50_chance"] == scores["i2t_R@50"] == scores["i2t_R@50_chance"] == 1


def test_empty_caption_is_refused_by_the_model(model, images, texts):
    with pytest.raises(InputError, match="item 3: the text is empty"):
        evaluate(model, images, [*texts[:3], "", *texts[4:]])


# Intervals are those of items drawn one by one


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).random(200) < 0.2,
        np.random.default_rng(1).exponential(size=60),
        np.array([0.0, 0.0, 1.0, 10.0]),
        1 / (1 + np.random.default_rng(2).integers(0, 9, 500)),
    ],
    ids=["hits", "exponential", "few", "ranks"],
)
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_interval_equals_scipys_bootstrap_within_sampling_error(values, level):
    theirs = bootstrap(
        (np.asarray(values, float),), np.mean, n_resamples=9999, confidence_level=level, method="percentile", rng=0
    )
    ours = bootstrap_interval(values, level, resamples=9999, seed=1)
    # About four standard errors of a quantile of 9999, and one hit.
    tolerance = 0.12 * theirs.standard_error + 1 / len(values)
    assert ours == (
        pytest.approx(theirs.confidence_interval.low, abs=tolerance),
        pytest.approx(theirs.confidence_interval.high, abs=tolerance),
    )


def test_means_of_resamples_have_the_bootstraps_distribution():
    # Of three items, all 27 draws are known: the mean is 0, 1/3, 2/3 or 1 with 8, 12, 6 and 1 of 27.
    values, resamples = np.array([0.0, 0.0, 1.0]), 20_000
    for level, expected in ((1 - 2 * 7.5 / 27, (0, 1 / 3)), (1 - 2 * 2 / 27, (0, 2 / 3)), (1 - 2 * 0.5 / 27, (0, 1))):
        assert bootstrap_interval(values, level, resamples) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


def test_tiling_does_not_change_the_interval(monkeypatch):
    values = np.random.default_rng(0).random(50)
    expected = bootstrap_interval(values)
    monkeypatch.setattr(metrics, "TILE_ELEMENTS", 130)
    assert bootstrap_interval(values) == pytest.approx(expected)


def test_interval_of_many_distinct_values_is_found():
    values = np.random.default_rng(0).normal(size=20_000)
    low, high = bootstrap_interval(values, resamples=200)
    error = values.std() / np.sqrt(len(values))
    assert (low, high) == (
        pytest.approx(values.mean() - 1.96 * error, abs=0.6 * error),
        pytest.approx(values.mean() + 1.96 * error, abs=0.6 * error),
    )


@pytest.mark.parametrize("bad", [5, float("nan"), b"a cat", ["a cat", None], {"text": "a cat"}, [["a cat"]]], ids=str)
@pytest.mark.parametrize("language", ["", "de"])
def test_caption_that_is_no_text_is_refused_with_its_place(bad, language):
    captions = ["a dog", bad]
    with pytest.raises(ValueError, match=r"the caption of image 1 is .*; pass a text, a list of texts, or None"):
        RetrievalEvaluator(range(2), {language: captions} if language else captions)


def test_language_whose_code_is_no_text_is_refused():
    with pytest.raises(ValueError, match="a language is a text, got False; write it in quotes, as 'no'"):
        RetrievalEvaluator(range(1), {"en": ["a dog"], False: ["en hund"]})


def test_results_are_whole_after_a_kill(tmp_path, monkeypatch):
    evaluator = RetrievalEvaluator(range(2), ["a", "b"], show_progress_bar=False)

    class Eye:
        def encode_image(self, items, **_):
            return torch.eye(2)[: len(items)]

        encode_text = encode_image

    evaluator(Eye(), tmp_path)
    before = (tmp_path / "RetrievalEvaluator.json").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluator(Eye(), tmp_path, epoch=3)
    assert (tmp_path / "RetrievalEvaluator.json").read_bytes() == before
