"""Retrieval by captions cut to token budgets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from freezealign import LongContextEvaluator
from freezealign.evaluation.budgets import counting, cut, token_ends, word_ends

WORDS = [f"w{number}" for number in range(40)]


class Bag:
    """A model that knows which words belong to an image; it reads a text as a bag of words."""

    def __init__(self, words: list[list[str]]) -> None:
        self.words = words

    def _vectors(self, bags):
        table = torch.zeros(len(bags), len(WORDS))
        for row, bag in enumerate(bags):
            for word in bag:
                table[row, WORDS.index(word)] = 1
        return torch.nn.functional.normalize(table + 1e-3, dim=-1)

    def encode_image(self, items, **_):
        return self._vectors([self.words[item] for item in items])

    def encode_text(self, items, **_):
        return self._vectors([item.split() for item in items])


def near_duplicates(groups: int = 3, variants: int = 4, shared: int = 6) -> list[list[str]]:
    """Images in groups that share their first words and differ in the last."""
    rows = []
    for group in range(groups):
        start = WORDS[group * shared : (group + 1) * shared]
        rows += [[*start, WORDS[20 + group * variants + variant]] for variant in range(variants)]
    return rows


def evaluate(model, captions, **options):
    return LongContextEvaluator(range(len(captions)), captions, show_progress_bar=False, **options)(model)


def test_reading_to_the_end_is_what_pays():
    rows = near_duplicates()
    scores = evaluate(Bag(rows), [" ".join(row) for row in rows], budgets=(2, 4, 7))
    # Cut short, the four of a group tie, and a tie counts against the model; the whole caption finds its own.
    assert [scores[f"at_{budget}_t2i_R@1"] for budget in (2, 4, 7)] == [0, 0, 1]
    assert [scores[f"at_{budget}_n_cut"] for budget in (2, 4, 7)] == [12, 12, 0]
    assert scores["t2i_R@1"] == 1
    assert (scores["budget"], scores["longest"], scores["unit"]) == (7, 7, "words")


def test_random_model_is_near_chance_at_every_budget():
    class Random:
        def encode_image(self, items, **_):
            return torch.randn(len(items), 16, generator=torch.Generator().manual_seed(0))

        def encode_text(self, items, **_):
            return torch.randn(len(items), 16, generator=torch.Generator().manual_seed(1))

    captions = [" ".join(WORDS)] * 200
    scores = evaluate(Random(), captions, budgets=(8, 16), ks=(20,))
    assert scores["at_8_t2i_R@20_chance"] == pytest.approx(0.1)
    assert scores["at_8_t2i_R@20"] == pytest.approx(0.1, abs=0.07)


def test_last_budget_is_the_longest_caption():
    scores = evaluate(Bag([["w1"], ["w2", "w3"]]), ["w1", "w2 w3"], budgets=(8, 64))
    assert [key for key in scores if key.endswith("_n_cut")] == ["at_2_n_cut"]
    assert scores["at_2_n_cut"] == 0


def test_primary_metric_and_curve(tmp_path):
    rows = near_duplicates()
    captions = {"en": [" ".join(row) for row in rows], "de": [" ".join(row[::-1]) for row in rows]}
    evaluator = LongContextEvaluator(range(12), captions, name="long", budgets=(1,), show_progress_bar=False)
    results = evaluator(Bag(rows), tmp_path)
    assert evaluator.primary_metric == "long_en_t2i_R@1"
    assert results["long_en_t2i_R@1"] == results["long_de_t2i_R@1"] == 1
    assert results["long_de_at_1_t2i_R@1"] == 1  # the word that tells them apart comes first
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 300


def test_budgets_of_the_models_own_tokenizer_end_at_its_limit(model, images):
    captions = [" ".join(["red", "apple"] * 10)] * 12
    with pytest.warns(UserWarning, match="16 tokens"):  # its tiny BERT reads 16, two of them special
        model.encode_text(captions[:1])
    ends, unit, limit = counting(model)
    assert (unit, limit) == ("tokens", 14)
    scores = LongContextEvaluator(images, captions, budgets=(4, 64), show_progress_bar=False)(model)
    assert scores["budget"] == 14
    assert scores["at_4_n_cut"] == scores["at_14_n_cut"] == 12
    assert scores["longest"] == len(ends(captions[0])) == 20


def test_images_can_be_precomputed(model, images, texts):
    evaluator = LongContextEvaluator(images, texts, show_progress_bar=False)
    before = evaluator(model)
    assert evaluator.precompute(model)(model) == pytest.approx(before)


@pytest.mark.parametrize("budgets", [(), (0, 8), (-1,)])
def test_budget_of_nothing_is_refused(budgets):
    with pytest.raises(ValueError, match="at least one token"):
        LongContextEvaluator(range(1), ["a"], budgets=budgets)


@given(st.text(max_size=60), st.integers(1, 20))
def test_cut_text_is_a_prefix_with_so_many_words(text, budget):
    ends = word_ends(text)
    short = cut(text, ends, budget)
    assert text.startswith(short)
    assert len(word_ends(short)) == min(budget, len(ends))


def test_scripts_without_spaces_count_by_the_character():
    assert len(word_ends("りんごと猫")) == 5
    assert len(word_ends("แมว")) == 3
    assert len(word_ends("苹果 apple!")) == 4
    assert len(word_ends("яблоко, кот")) == 3


def test_tokens_end_where_the_tokenizer_says(model):
    ends = token_ends(model.encoders["text"].encoder.tokenizer)("a red apple")
    assert ends == [1, 5, 11]


def test_tokenizer_without_positions_is_refused():
    with pytest.raises(ValueError, match="fast tokenizer"):
        token_ends(object())


def test_cka_and_retrieval_stay_what_they_are():
    rows = near_duplicates()
    captions = [" ".join(row) for row in rows]
    full = evaluate(Bag(rows), captions, budgets=(2,))
    from freezealign import RetrievalEvaluator

    plain = RetrievalEvaluator(range(12), captions, ks=(1,), show_progress_bar=False)(Bag(rows))
    for key in ("t2i_R@1", "i2t_R@1", "t2i_MRR", "t2i_R@1_low"):
        assert full[key] == plain[key]
    assert np.isclose(plain["t2i_MRR"], 1)
