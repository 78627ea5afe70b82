"""From tokens to one vector."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freezealign import Normalize, Pooling

# One text of four positions: CLS, two words, SEP, and one item of padding behind them.
TOKENS = torch.tensor([[[1.0, 10.0], [2.0, -20.0], [6.0, 30.0], [7.0, -8.0], [100.0, 100.0]]])
MASK = torch.tensor([[1, 1, 1, 1, 0]])
SPECIAL = torch.tensor([[1, 0, 0, 1, 1]])
CLS = torch.tensor([[0.5, -0.5]])
TEXT = {"token_embeddings": TOKENS, "attention_mask": MASK, "special_tokens_mask": SPECIAL, "cls_token_embeddings": CLS}
IMAGE = {"token_embeddings": TOKENS, "cls_token_embeddings": CLS}

MODES = ("cls", "mean", "max", "patch_mean", "cls+patch_mean")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("cls", [0.5, -0.5]),
        ("mean", [4.0, 3.0]),
        ("max", [7.0, 30.0]),
        ("patch_mean", [4.0, 5.0]),
        ("cls+patch_mean", [4.5, 4.5]),
    ],
)
def test_hand_worked_text(mode, expected):
    assert Pooling(mode)(TEXT)["sentence_embedding"].tolist() == [expected]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("cls", [0.5, -0.5]),
        ("mean", [23.2, 22.4]),
        ("max", [100.0, 100.0]),
        ("patch_mean", [23.2, 22.4]),
        ("cls+patch_mean", [23.7, 21.9]),
    ],
)
def test_without_a_mask_every_token_counts(mode, expected):
    torch.testing.assert_close(Pooling(mode)(IMAGE)["sentence_embedding"], torch.tensor([expected]))


def test_special_tokens_count_in_the_mean_but_not_in_the_patch_mean():
    changed = {**TEXT, "token_embeddings": TOKENS.clone()}
    changed["token_embeddings"][0, 0] += 99  # the special token in front
    mean, words = Pooling("mean"), Pooling("patch_mean")
    assert not torch.equal(mean(changed)["sentence_embedding"], mean(TEXT)["sentence_embedding"])
    assert torch.equal(words(changed)["sentence_embedding"], words(TEXT)["sentence_embedding"])


def test_rows_of_a_batch_do_not_mix():
    features = {"token_embeddings": torch.cat([TOKENS, -TOKENS]), "attention_mask": torch.cat([MASK, MASK])}
    pooled = Pooling("mean")(features)["sentence_embedding"]
    assert pooled.tolist() == [[4.0, 3.0], [-4.0, -3.0]]


def test_text_of_special_tokens_only_pools_to_a_finite_vector():
    features = {**TEXT, "special_tokens_mask": torch.ones(1, 5)}
    assert torch.isfinite(Pooling("patch_mean")(features)["sentence_embedding"]).all()


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    extra=st.integers(1, 4),
    filler=st.sampled_from([0.0, 1e6, -1e6]),
    seed=st.integers(0, 999),
)
def test_padding_does_not_change_the_result(mode, lengths, extra, filler, seed):
    generator = torch.Generator().manual_seed(seed)
    longest, width = max(lengths), 3
    tokens = torch.randn(len(lengths), longest, width, generator=generator)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    special = torch.zeros(len(lengths), longest, dtype=torch.long)
    cls = torch.randn(len(lengths), width, generator=generator)
    features = {
        "token_embeddings": tokens,
        "attention_mask": mask,
        "special_tokens_mask": special,
        "cls_token_embeddings": cls,
    }
    padding = torch.full((len(lengths), extra, width), filler)
    padded = {
        **features,
        "token_embeddings": torch.cat([tokens, padding], 1),
        "attention_mask": torch.cat([mask, torch.zeros(len(lengths), extra, dtype=torch.bool)], 1),
        "special_tokens_mask": torch.cat([special, torch.ones(len(lengths), extra, dtype=torch.long)], 1),
    }
    block = Pooling(mode)
    torch.testing.assert_close(
        block(padded)["sentence_embedding"], block(features)["sentence_embedding"], atol=1e-6, rtol=1e-6
    )


@settings(max_examples=30, deadline=None)
@given(mode=st.sampled_from(MODES), order=st.permutations(range(5)))
def test_order_of_the_tokens_does_not_matter(mode, order):
    shuffled = {
        "token_embeddings": TOKENS[:, order],
        "attention_mask": MASK[:, order],
        "special_tokens_mask": SPECIAL[:, order],
        "cls_token_embeddings": CLS,
    }
    torch.testing.assert_close(Pooling(mode)(shuffled)["sentence_embedding"], Pooling(mode)(TEXT)["sentence_embedding"])


def test_pooling_keeps_half_precision():
    features = {**TEXT, "token_embeddings": TOKENS.half(), "cls_token_embeddings": CLS.half()}
    assert Pooling("cls+patch_mean")(features)["sentence_embedding"].dtype == torch.float16


def test_pooling_leaves_its_input_as_it_was():
    features = dict(TEXT)
    Pooling("mean")(features)
    assert "sentence_embedding" not in features


def test_unknown_mode_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'median'.*cls.*mean.*max.*patch_mean"):
        Pooling("median")


@pytest.mark.parametrize("mode", ["cls", "cls+patch_mean"])
def test_missing_cls_vector_is_named(mode):
    with pytest.raises(ValueError, match=r"cls_token_embeddings.*token_embeddings"):
        Pooling(mode)({"token_embeddings": TOKENS})


@pytest.mark.parametrize("mode", ["mean", "max", "patch_mean", "cls+patch_mean"])
def test_missing_tokens_are_named(mode):
    with pytest.raises(ValueError, match=r"Pooling needs 'token_embeddings'"):
        Pooling(mode)({"cls_token_embeddings": CLS})


def test_normalize_gives_unit_vectors_in_the_same_direction():
    vectors = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    unit = Normalize()({"sentence_embedding": vectors})["sentence_embedding"]
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_normalize_before_pooling_says_what_to_do():
    with pytest.raises(ValueError, match="put a Pooling before it"):
        Normalize()({"token_embeddings": TOKENS})
