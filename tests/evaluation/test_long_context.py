"""Retrieval by captions cut to token budgets."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from freezealign import FreezeAlign, LongContextEvaluator
from freezealign.evaluation.long_context import counting, cut, token_ends
from freezealign.words import word_ends

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
    short = cut(text, word_ends, budget)
    assert text.startswith(short)
    assert len(word_ends(short)) == min(budget, len(word_ends(text)))


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


# What is read at each budget


class Clear(Bag):
    """Such a model to which each image is a little less clear than the one before; it may stop reading early."""

    def __init__(self, words: list[list[str]], reads: int | None = None) -> None:
        super().__init__(words)
        self.reads = reads
        self.asked: list[str] = []

    def encode_image(self, items, **_):
        return super().encode_image(items) * (1 - 1e-3 * torch.arange(len(items)))[:, None]

    def encode_text(self, items, **_):
        self.asked += items
        return self._vectors([item.split()[: self.reads] for item in items])


def test_recall_rises_from_chance_within_a_group_to_one():
    # Cut short, the four of a group all find the clearest of them.
    rows = near_duplicates()
    scores = evaluate(Clear(rows), [" ".join(row) for row in rows], budgets=(1, 6))
    assert [scores[f"at_{budget}_t2i_R@1"] for budget in (1, 6, 7)] == [1 / 4, 1 / 4, 1]


def test_model_that_stops_reading_gains_nothing_from_more():
    rows = near_duplicates()
    scores = evaluate(Clear(rows, reads=4), [" ".join(row) for row in rows], budgets=(4,))
    assert scores["at_7_t2i_R@1"] == scores["at_4_t2i_R@1"] == 1 / 4


def test_texts_are_cut_to_each_budget_once():
    model = Clear([["w1", "w2", "w3"], ["w4", "w5"]])
    evaluate(model, ["w1 w2 w3", "w4 w5"], budgets=(2, 1, 2, 3, 8))
    assert model.asked == ["w1", "w4", "w1 w2", "w4 w5", "w1 w2 w3", "w4 w5"]


def test_captions_shorter_than_every_budget_are_read_once_and_in_full():
    model = Clear([["w1", "w2", "w3"], ["w4"]])
    evaluate(model, captions := ["w1 w2 w3", "w4"])
    assert model.asked == captions


def test_largest_budget_stands_without_one():
    rows = near_duplicates()
    scores = evaluate(Clear(rows), [" ".join(row) for row in rows], budgets=(3,))
    for key in ("t2i_R@1", "t2i_R@1_low", "t2i_R@1_chance", "i2t_R@1", "t2i_MRR", "n_images", "n_texts", "n_cut"):
        assert scores[key] == scores[f"at_7_{key}"]


def test_languages_have_their_own_longest_caption():
    captions = {"en": ["w1 w2 w3", "w4"], "de": ["w1 w2", None]}
    evaluator = LongContextEvaluator(range(2), captions, budgets=(2,), show_progress_bar=False)
    scores = evaluator(Bag([["w1", "w2", "w3"], ["w4"]]))
    assert (scores["en_longest"], scores["de_longest"]) == (3, 2)
    assert (scores["en_at_2_n_cut"], scores["de_at_2_n_cut"], scores["de_n_images"]) == (1, 0, 1)
    assert "de_at_3_t2i_R@1" not in scores


def test_cut_captions_are_counted_over_all_of_an_image():
    scores = evaluate(Bag([["w1"], ["w2"]]), [["w1 w3 w4", "w1"], ["w2 w5", "w2 w5 w6 w7"]], budgets=(2,))
    assert (scores["at_2_n_cut"], scores["n_texts"]) == (2, 4)


@pytest.mark.parametrize(("captions", "longest"), [(["w1 w2", ""], 2), (["", " "], 0)])
def test_captions_without_words_do_not_fail(captions, longest):
    scores = evaluate(Bag([["w1", "w2"], ["w3"]]), captions, budgets=(1,))
    assert scores["longest"] == scores["budget"] == longest


def test_curve_is_of_the_first_rank_by_budget(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr("freezealign.evaluation.long_context.draw_curves", lambda *args: drawn.append(args))
    rows = near_duplicates()
    evaluator = LongContextEvaluator(range(12), [" ".join(row) for row in rows], budgets=(3,), show_progress_bar=False)
    scores = evaluator(Clear(rows), tmp_path)
    ((_, curves, _, title),) = drawn
    assert title == "t2i_R@1 by words read"
    assert [(point["x"], point["y"]) for point in curves["captions"]] == [(3, 1 / 4), (7, 1)]
    assert [curves["captions"][0][end] for end in ("low", "high")] == [
        scores[f"at_3_t2i_R@1_{end}"] for end in ("low", "high")
    ]


# On real encoders


def long_texts() -> list[str]:
    """Twelve texts of twenty words, each a token of its own, that differ at the fifth."""
    return [" ".join(["a red apple number", str(i), *["dog"] * 15]) for i in range(12)]


def test_no_text_is_cut_by_the_encoder_itself(model, images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = LongContextEvaluator(images, long_texts(), budgets=(4, 14, 16, 32), show_progress_bar=False)(model)
    assert {key.split("_")[1] for key in scores if key.startswith("at_")} == {"4", "14"}


def test_what_the_encoder_cannot_read_changes_nothing(model, images):
    short = [text.rsplit(" ", 6)[0] for text in long_texts()]
    whole, cut_before = (
        LongContextEvaluator(images, texts, show_progress_bar=False)(model) for texts in (long_texts(), short)
    )
    assert whole["t2i_MRR"] == cut_before["t2i_MRR"]


def test_sentence_transformers_limit_is_the_largest_budget(dinov2_folder, sbert_folder, images):
    model = FreezeAlign([dinov2_folder, sbert_folder], dim=8, seed=0, device="cpu")
    scores = LongContextEvaluator(images, long_texts(), show_progress_bar=False)(model)
    assert scores["budget"] == 12 - 2


def test_model_of_functions_counts_words(callable_model, images, texts):
    scores = LongContextEvaluator(images, texts, show_progress_bar=False)(callable_model)
    assert (scores["unit"], scores["longest"]) == ("words", 14)


# Cutting, by tokenizers of all kinds

CORPUS = ["a ab abc xyz zyx baba, é é.", "日本 日本 ก 👍🏽 1_1", "xyz ab ab 👍 日"]


@cache
def tokenizer(kind: str):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "words":
        return make_tokenizer()
    model, trainer, splitter, normalizer = {
        "bytes": (
            models.BPE(),
            trainers.BpeTrainer(
                vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            None,
        ),
        "pieces": (
            models.WordPiece(unk_token="[UNK]"),
            trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False),
            pre_tokenizers.BertPreTokenizer(),
            normalizers.BertNormalizer(),
        ),
        "unigrams": (
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
            pre_tokenizers.Metaspace(),
            normalizers.NFKC(),
        ),
    }[kind]
    made = Tokenizer(model)
    made.pre_tokenizer, made.decoder = splitter, decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    made.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize("kind", ["words", "bytes", "pieces", "unigrams"])
@settings(max_examples=60)
@given(text=st.text(st.sampled_from("ab xyz,._1é日本ก👍🏽\n"), max_size=40), budget=st.integers(1, 12))
def test_cut_text_is_a_prefix_of_at_most_so_many_tokens(kind, text, budget):
    ends = token_ends(tokenizer(kind))
    short = cut(text, ends, budget)
    assert text.startswith(short)
    assert len(ends(short)) <= budget
    if len(ends(text)) <= budget:
        assert short == text


def test_beginning_that_splits_into_more_tokens_alone_is_cut_again():
    def ends(text):
        """Find one token in "ba", and two in "b"."""
        return [1, 1] if text == "b" else [1, 2][: len(text)]

    assert cut("ba", ends, 1) == ""


def test_character_of_several_tokens_is_not_cut_through():
    ends = token_ends(tokenizer("bytes"))
    assert len(ends("x")) == 1
    assert len(ends("한")) == 3
    assert [cut("x한x", ends, budget) for budget in (1, 2, 3, 4, 5)] == ["x", "x", "x", "x한", "x한x"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red-brown dog, 2 years.", ["A", "red", "-", "brown", "dog", ",", "2", "years", "."]),
        ("两只狗在跑。", list("两只狗在跑。")),
        ("犬がボールで遊ぶ", list("犬がボールで遊ぶ")),
        ("หมาวิ่ง", list("หมาวิ่ง")),
        ("개가 달린다", ["개가", "달린다"]),
        ("3人の子供とTシャツ", ["3", *"人の子供と", "T", *"シャツ"]),
        ("snake_case", ["snake", "_", "case"]),
        ("собака бежит", ["собака", "бежит"]),
        ("", []),
    ],
)
def test_words_of_many_scripts(text, words):
    ends = word_ends(text)
    assert [text[start:end].strip() for start, end in zip([0, *ends], ends)] == words


@pytest.mark.parametrize("text", ["两只狗在公园里跑来跑去", "3匹の犬が走る", "หมาสองตัววิ่งเล่น"])
def test_scripts_without_spaces_are_cut_by_the_character(text):
    assert cut(text, word_ends, 4) == text[:4]
