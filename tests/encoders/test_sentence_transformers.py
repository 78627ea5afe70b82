from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

from freezealign import FreezeAlign, FrozenEncoder

SHORT, LONG = "a red", "a red apple 1 2 3"


@pytest.fixture(scope="module")
def encoder(sbert_folder) -> FrozenEncoder:
    return FrozenEncoder(sbert_folder)


def read(encoder: FrozenEncoder, *texts: str) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return encoder(encoder.preprocess(list(texts)))


def save(folder: Path, *modules) -> str:
    SentenceTransformer(modules=list(modules), device="cpu").save_pretrained(str(folder))
    return str(folder)


def test_its_vector_is_what_sentence_transformers_encodes(encoder, sbert_folder, texts):
    expected = SentenceTransformer(sbert_folder, device="cpu").encode(texts)
    np.testing.assert_allclose(read(encoder, *texts)["sentence_embedding"], expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["cls", "max", "mean_sqrt_len_tokens", "lasttoken"])
def test_the_pooling_saved_in_the_folder_is_respected(mode, bert_folder, tmp_path):
    transformer = Transformer(bert_folder)
    folder = save(tmp_path, transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=mode))
    expected = SentenceTransformer(folder, device="cpu").encode([SHORT, LONG])
    actual = read(FrozenEncoder(folder), SHORT, LONG)["sentence_embedding"]
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_tokens_are_those_of_the_transformer_inside(encoder, bert_folder):
    inside = FrozenEncoder(bert_folder)
    torch.testing.assert_close(read(encoder, LONG)["token_embeddings"], read(inside, LONG)["token_embeddings"])


def test_the_summary_is_the_first_token(encoder):
    features = read(encoder, LONG, SHORT)
    torch.testing.assert_close(features["cls_token_embeddings"], features["token_embeddings"][:, 0])


def test_the_width_is_that_of_the_tokens_even_if_the_vector_is_narrower(bert_folder, tmp_path):
    transformer = Transformer(bert_folder)
    pooling = Pooling(transformer.get_embedding_dimension())
    encoder = FrozenEncoder(save(tmp_path, transformer, pooling, Dense(20, 6)))
    features = read(encoder, SHORT)
    assert encoder.get_embedding_dimension() == features["token_embeddings"].shape[-1] == 20
    assert features["sentence_embedding"].shape == (1, 6)
    assert FreezeAlign([encoder], dim=8, device="cpu").encode([SHORT]).shape == (1, 8)


def test_special_tokens_and_padding_are_marked_and_words_are_not(encoder):
    mask = read(encoder, LONG, SHORT)["special_tokens_mask"]
    assert mask.int().tolist() == [[1, 0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 1, 1, 1, 1, 1]]


def test_an_unknown_word_is_a_word(encoder):
    assert read(encoder, "a zebra")["special_tokens_mask"].int().tolist() == [[1, 0, 0, 1]]


def test_padding_is_marked_in_the_attention_mask(encoder):
    assert read(encoder, LONG, SHORT)["attention_mask"].sum(1).tolist() == [8, 4]


def test_the_tokens_of_a_text_do_not_depend_on_the_batch_it_is_in(encoder):
    alone, together = read(encoder, SHORT), read(encoder, LONG, SHORT)
    torch.testing.assert_close(together["token_embeddings"][1, :4], alone["token_embeddings"][0], atol=1e-5, rtol=1e-4)


def test_a_tokenizer_that_pads_on_the_left_makes_no_difference(sbert_folder, tmp_path):
    folder = shutil.copytree(sbert_folder, tmp_path / "left")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left"}))
    encoder = FrozenEncoder(str(folder))
    alone, together = read(encoder, SHORT), read(encoder, LONG, SHORT)
    mask = together["attention_mask"][1].bool()
    torch.testing.assert_close(together["token_embeddings"][1, mask], alone["token_embeddings"][0])
    torch.testing.assert_close(together["cls_token_embeddings"][1], alone["cls_token_embeddings"][0])


def test_the_maximum_length_saved_in_the_folder_is_respected(encoder):
    assert read(encoder, "a " * 50)["token_embeddings"].shape[1] == encoder.max_seq_length == 12


@pytest.mark.parametrize("max_length", [6, 14])
def test_max_length_replaces_the_folders(max_length, sbert_folder):
    encoder = FrozenEncoder(sbert_folder, max_length=max_length)
    assert read(encoder, "a " * 50)["token_embeddings"].shape[1] == encoder.max_seq_length == max_length


def test_a_folder_that_states_no_maximum_length_is_cut_to_the_positions_of_its_model(sbert_folder, tmp_path):
    folder = shutil.copytree(sbert_folder, tmp_path / "unlimited")
    for name in ("sentence_bert_config.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        kept = {key: value for key, value in config.items() if key not in ("max_seq_length", "model_max_length")}
        (folder / name).write_text(json.dumps(kept))
    assert read(FrozenEncoder(str(folder)), "a " * 50)["token_embeddings"].shape[1] == 16


def test_max_length_is_part_of_the_identity(sbert_folder, encoder):
    assert FrozenEncoder(sbert_folder, max_length=6).encoder.preprocessing != encoder.encoder.preprocessing


def test_a_cut_text_warns_once_with_how_long_it_is(sbert_folder):
    encoder = FrozenEncoder(sbert_folder)
    with pytest.warns(UserWarning, match=r"1 of 2 texts.*encoder's 12 tokens.*longest has 22.*max_length="):
        encoder.preprocess([SHORT, "a " * 20])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.preprocess(["a " * 30])


def test_a_text_that_just_fits_does_not_warn(sbert_folder):
    encoder = FrozenEncoder(sbert_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.preprocess(["a " * 10, SHORT])


def test_code_that_a_folder_brings_along_is_not_run(sbert_folder, tmp_path):
    folder = shutil.copytree(sbert_folder, tmp_path / "model")
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass Evil: ...\n"
    )
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1]["type"] = "evil.Evil"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises((ValueError, ImportError)):
        FrozenEncoder(str(folder))
    assert not (tmp_path / "ran").exists()
