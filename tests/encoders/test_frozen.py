"""A frozen encoder stays frozen, is saved as a reference, and is recognised when it comes back."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from freezealign import FreezeAlign, FrozenEncoder

SHA256 = r"[0-9a-f]{64}"


@pytest.fixture(params=["image", "text", "sbert"])
def encoder(request, dinov2_folder, bert_folder) -> FrozenEncoder:
    """One encoder of each kind; BERT has dropout 0.1."""
    if request.param == "sbert":
        return FrozenEncoder(request.getfixturevalue("sbert_folder"))
    return FrozenEncoder({"image": dinov2_folder, "text": bert_folder}[request.param])


@pytest.fixture
def bert_copy(bert_folder, tmp_path) -> str:
    """A BERT folder that a test may change."""
    return str(shutil.copytree(bert_folder, tmp_path / "encoder"))


@pytest.fixture
def dinov2_copy(dinov2_folder, tmp_path) -> str:
    """A DINOv2 folder that a test may change."""
    return str(shutil.copytree(dinov2_folder, tmp_path / "encoder"))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: str) -> None:
    """Change one number of one tensor by a little."""
    from safetensors.torch import load_file, save_file

    path = str(Path(folder, "model.safetensors"))
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})


def hashes(module: torch.nn.Module) -> dict[str, str]:
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in module.state_dict().items()}


def items_for(encoder: FrozenEncoder, images, texts) -> list:
    return images[:3] if encoder.modality == "image" else texts[:3]


# Frozen


def test_training_mode_does_not_wake_dropout(encoder, images, texts):
    batch = encoder.preprocess(items_for(encoder, images, texts))
    expected = encoder(batch)["token_embeddings"]
    encoder.train()
    assert torch.equal(encoder(batch)["token_embeddings"], expected)


def test_training_mode_of_the_model_does_not_wake_the_encoders(model):
    model.train()
    awake = [name for encoder in model.encoders.values() for name, part in encoder.named_modules() if part.training]
    assert awake == []


def test_training_mode_of_the_model_wakes_the_blocks(model):
    model.train()
    assert all(block.training for name in model.towers for block in model.tower(name).blocks)


def test_no_parameter_requires_gradients(encoder):
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_features_carry_no_gradient(encoder, images, texts):
    assert not encoder(encoder.preprocess(items_for(encoder, images, texts)))["token_embeddings"].requires_grad


def test_fit_changes_no_tensor_of_the_encoders(model, pairs):
    before = {name: hashes(encoder) for name, encoder in model.encoders.items()}
    model.fit(pairs, epochs=2, batch_size=6, learning_rate=0.1, weight_decay=0.5, show_progress_bar=False)
    assert {name: hashes(encoder) for name, encoder in model.encoders.items()} == before


def test_fit_without_a_cache_changes_no_tensor_of_the_encoders(model, pairs):
    before = {name: hashes(encoder) for name, encoder in model.encoders.items()}
    model.fit(pairs, epochs=1, batch_size=6, learning_rate=0.1, cache_features=False, show_progress_bar=False)
    assert {name: hashes(encoder) for name, encoder in model.encoders.items()} == before


def test_fingerprint_covers_every_tensor(bert_folder):
    encoder = FrozenEncoder(bert_folder)
    original = encoder.fingerprint
    for name, tensor in encoder.encoder.state_dict().items():
        if tensor.is_floating_point():
            before = tensor.clone()
            tensor.view(-1)[-1] += 1
            assert encoder.encoder.fingerprint() != original, name
            tensor.copy_(before)
    assert encoder.encoder.fingerprint() == original


def test_fingerprint_is_the_same_each_time_an_encoder_is_loaded(bert_folder):
    assert FrozenEncoder(bert_folder).fingerprint == FrozenEncoder(bert_folder).fingerprint


# What it gives


def test_image_tokens_are_the_patches_in_row_major_order(dinov2_folder, images):
    from transformers import Dinov2Model

    encoder = FrozenEncoder(dinov2_folder)
    batch = encoder.preprocess(images[:2])
    hidden = Dinov2Model.from_pretrained(dinov2_folder).eval()(**batch).last_hidden_state
    output = encoder(batch)
    assert output["grid"] == (4, 4)
    assert torch.equal(output["token_embeddings"], hidden[:, 1:])
    assert torch.equal(output["cls_token_embeddings"], hidden[:, 0])


def test_special_tokens_of_a_text_are_marked(bert_folder):
    encoder = FrozenEncoder(bert_folder)
    output = encoder(encoder.preprocess(["a red apple", "a"]))
    assert output["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    marked = output["special_tokens_mask"].bool() & output["attention_mask"].bool()
    assert marked.tolist() == [[True, False, False, False, True], [True, False, True, False, False]]


def test_vectors_of_a_function_are_one_token_each():
    encoder = FrozenEncoder(lambda items: np.eye(len(items), 4), "text")
    output = encoder(encoder.preprocess(["a", "b"]))
    assert output["token_embeddings"].shape == (2, 1, 4)


def test_maximum_length_can_be_lowered(bert_folder, texts):
    encoder = FrozenEncoder(bert_folder, max_length=5)
    with pytest.warns(UserWarning, match="cut to the encoder's 5 tokens"):
        assert encoder.preprocess(texts)["input_ids"].shape == (12, 5)
    assert encoder.max_seq_length == 5


def test_image_size_can_be_raised(dinov2_folder, images):
    encoder = FrozenEncoder(dinov2_folder, image_size=42)
    assert encoder(encoder.preprocess(images[:1]))["grid"] == (6, 6)


def test_encoder_tells_its_width(encoder, images, texts):
    output = encoder(encoder.preprocess(items_for(encoder, images, texts)))
    assert output["token_embeddings"].shape[-1] == encoder.get_embedding_dimension()


# Saved as a reference


def test_save_writes_only_json(encoder, tmp_path):
    encoder.save(str(tmp_path / "saved"))
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["config.json"]


def test_saved_encoder_gives_the_same_features(encoder, images, texts, tmp_path):
    encoder.save(str(tmp_path))
    loaded = FrozenEncoder.load(str(tmp_path))
    items = items_for(encoder, images, texts)
    expected = encoder(encoder.preprocess(items))["token_embeddings"]
    assert torch.equal(loaded(loaded.preprocess(items))["token_embeddings"], expected)


def test_overridden_length_is_saved(bert_folder, tmp_path):
    FrozenEncoder(bert_folder, max_length=7).save(str(tmp_path))
    assert FrozenEncoder.load(str(tmp_path)).max_seq_length == 7


def test_changed_weights_are_refused_with_both_fingerprints(bert_copy, tmp_path):
    encoder = FrozenEncoder(bert_copy)
    encoder.save(str(tmp_path / "saved"))
    edit_weights(bert_copy)
    with pytest.raises(ValueError, match="not the one this model was trained with") as error:
        FrozenEncoder.load(str(tmp_path / "saved"))
    named = set(re.findall(SHA256, str(error.value)))
    assert named == {encoder.fingerprint, FrozenEncoder(bert_copy).fingerprint}


def test_changed_weights_are_refused_by_the_whole_model(dinov2_folder, bert_copy, tmp_path):
    FreezeAlign([dinov2_folder, bert_copy], dim=8, device="cpu").save_pretrained(tmp_path / "saved")
    edit_weights(bert_copy)
    with pytest.raises(ValueError, match="encoders="):
        FreezeAlign.from_pretrained(tmp_path / "saved", device="cpu")


def test_changed_image_statistics_are_refused(dinov2_copy, tmp_path):
    FrozenEncoder(dinov2_copy).save(str(tmp_path / "saved"))
    edit_json(Path(dinov2_copy, "preprocessor_config.json"), image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match=r"preprocessing.*0\.5.*0\.485"):
        FrozenEncoder.load(str(tmp_path / "saved"))


def test_changed_length_limit_is_refused(bert_copy, tmp_path):
    FrozenEncoder(bert_copy).save(str(tmp_path / "saved"))
    edit_json(Path(bert_copy, "tokenizer_config.json"), model_max_length=9)
    with pytest.raises(ValueError, match=r"preprocessing.*9.*16"):
        FrozenEncoder.load(str(tmp_path / "saved"))


def test_changed_vocabulary_is_refused(bert_copy, tmp_path):
    """Swapped ids of two words turn every text into another one; that is preprocessing as much as a mean is."""
    FrozenEncoder(bert_copy).save(str(tmp_path / "saved"))
    path = Path(bert_copy, "tokenizer.json")
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["red"], vocabulary["green"] = vocabulary["green"], vocabulary["red"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="preprocessing"):
        FrozenEncoder.load(str(tmp_path / "saved"))


def test_missing_encoder_folder_is_an_error_that_names_it(bert_copy, tmp_path):
    FrozenEncoder(bert_copy).save(str(tmp_path / "saved"))
    shutil.rmtree(bert_copy)
    with pytest.raises((ValueError, ConnectionError), match=re.escape(bert_copy)):
        FrozenEncoder.load(str(tmp_path / "saved"))


# Errors


def test_function_without_a_modality_says_what_to_do():
    with pytest.raises(ValueError, match="modality='text'"):
        FrozenEncoder(len)


def test_something_that_is_no_encoder_is_refused():
    with pytest.raises(TypeError, match="not int"):
        FrozenEncoder(3)


def test_function_of_an_unknown_modality_must_state_its_width():
    with pytest.raises(ValueError, match=r"width of the 'audio' encoder.*dim="):
        FrozenEncoder(lambda items: np.zeros((len(items), 3)), "audio")


def test_misspelt_short_name_is_corrected():
    with pytest.raises(ValueError, match=r"did you mean 'dinov2-large'"):
        FrozenEncoder("dinov2-lrge")


@pytest.mark.parametrize("item", [None, 3, ["a", "b"]])
def test_item_that_is_no_text_is_named(bert_folder, item):
    with pytest.raises(ValueError, match="text"):
        FrozenEncoder(bert_folder).preprocess([item])


def test_representation_says_what_it_is(bert_folder):
    assert re.search(r"text, 20 wide, [\d,]+ frozen", repr(FrozenEncoder(bert_folder)))
