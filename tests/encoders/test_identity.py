"""What passes for the same encoder: neither more than is the same, nor less."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from freezealign import FreezeAlign, FrozenEncoder

TEXTS = ["red", "a green leaf"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def edited(folder: str, copy_to: Path, name: str, change) -> str:
    """A copy of a model folder in which one JSON file is another."""
    shutil.copytree(folder, copy_to)
    content = json.loads((copy_to / name).read_text())
    change(content)
    (copy_to / name).write_text(json.dumps(content))
    return str(copy_to)


CHANGES = {
    "activation": ("config.json", lambda c: c.update(hidden_act="relu")),
    "eps of the norms": ("config.json", lambda c: c.update(layer_norm_eps=0.1)),
    "heads": ("config.json", lambda c: c.update(num_attention_heads=1)),
    "normaliser": ("tokenizer.json", lambda c: c.update(normalizer={"type": "Lowercase"})),
    "no CLS and SEP": ("tokenizer.json", lambda c: c.update(post_processor=None)),
    "splitting": ("tokenizer.json", lambda c: c.update(pre_tokenizer={"type": "WhitespaceSplit"})),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_configuration_or_tokenizer_with_the_same_weights_is_another_encoder(bert_folder, tmp_path, change):
    name, make = CHANGES[change]
    encoder = FrozenEncoder(bert_folder, "text")
    other = FrozenEncoder(edited(bert_folder, tmp_path / "other", name, make), "text")
    assert other.fingerprint == encoder.fingerprint and other.identity != encoder.identity
    with pytest.raises(ValueError, match="is not the one this model was trained with"):
        other.check_identity(encoder.get_config_dict())


PROCESSORS = {
    "mean": lambda c: c.update(image_mean=[0.1, 0.1, 0.1]),
    "resampling": lambda c: c.update(resample=0),
    "no resizing": lambda c: c.update(do_resize=False),
}


@pytest.mark.parametrize("change", PROCESSORS)
def test_another_image_processor_is_another_encoder(dinov2_folder, tmp_path, change):
    encoder = FrozenEncoder(dinov2_folder, "image")
    other = edited(dinov2_folder, tmp_path / "other", "preprocessor_config.json", PROCESSORS[change])
    assert FrozenEncoder(other, "image").identity != encoder.identity


@pytest.mark.parametrize("name", ["transformers_version", "_name_or_path", "torch_dtype", "id2label"])
def test_what_changes_nothing_is_no_other_encoder(bert_folder, tmp_path, name):
    value = {"0": "cat"} if name == "id2label" else "float32"
    other = edited(bert_folder, tmp_path / "other", "config.json", lambda c: c.update({name: value}))
    assert FrozenEncoder(other, "text").identity == FrozenEncoder(bert_folder, "text").identity


def test_identity_survives_encoding_and_is_computed_once(bert_folder, monkeypatch):
    encoder = FrozenEncoder(bert_folder, "text")
    before = copy.deepcopy(encoder.identity)
    encoder(encoder.preprocess(["a", "a much longer text"]))
    again = FrozenEncoder(bert_folder, "text")
    again(again.preprocess(["a", "a much longer text"]))  # sets padding and truncation in the tokenizer
    assert again.identity == before
    monkeypatch.setattr(type(encoder.encoder), "fingerprint", None)
    assert encoder.get_config_dict()["fingerprint"] == before["fingerprint"]


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_a_cast_encoder_is_told_by_the_tensors_it_was_loaded_with(bert_folder, cast):
    encoder = FrozenEncoder(bert_folder, "text")
    assert getattr(encoder, cast)().identity == FrozenEncoder(bert_folder, "text").identity


def checkpoint(kind: str, folder: Path, bert_folder: str) -> tuple[str, str]:
    """A checkpoint without a pooler, as there are many; the folder and its modality."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **SMALL)
    if kind == "ViTForImageClassification":
        ViTForImageClassification(ViTConfig(image_size=28, patch_size=14, **SMALL)).save_pretrained(folder)
        ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
        return str(folder), "image"
    tokenizer.save_pretrained(folder)
    if kind == "T5EncoderModel":
        t5 = T5Config(vocab_size=len(tokenizer), d_model=16, d_ff=16, num_layers=2, num_heads=2, d_kv=8)
        T5EncoderModel(t5).save_pretrained(folder)
    elif kind == "BertForMaskedLM":
        BertForMaskedLM(config).save_pretrained(folder)
    else:
        BertModel(config, add_pooling_layer=kind == "BertModel").save_pretrained(folder)
    return str(folder), "text"


@pytest.mark.parametrize("kind", ["no pooler", "BertForMaskedLM", "ViTForImageClassification", "T5EncoderModel"])
def test_a_checkpoint_without_what_nothing_reads_is_the_same_at_every_load(tmp_path, bert_folder, images, kind):
    folder, modality = checkpoint(kind, tmp_path / "encoder", bert_folder)
    first, second = FrozenEncoder(folder, modality), FrozenEncoder(folder, modality)
    assert first.identity == second.identity
    model = FreezeAlign({modality: first}, dim=8, seed=0, device="cpu")
    items = images if modality == "image" else TEXTS
    model.save_pretrained(tmp_path / "model")
    again = FreezeAlign.from_pretrained(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(model.encode(items), again.encode(items))
    if kind == "T5EncoderModel":
        assert "decoder" not in " ".join(first.state_dict())


@pytest.mark.parametrize("damage", ["a layer is missing", "another prefix"])
def test_a_checkpoint_that_lacks_what_is_used_is_refused_with_a_list(tmp_path, bert_folder, damage):
    folder, _ = checkpoint("BertModel", tmp_path / "encoder", bert_folder)
    path = Path(folder, "model.safetensors")
    tensors = load_file(path)
    if damage == "another prefix":
        tensors = {f"foreign.{name}": tensor for name, tensor in tensors.items()}
    else:
        tensors = {name: tensor for name, tensor in tensors.items() if "layer.1." not in name}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ of the encoder's \d+ weights.*encoder\.layer"):
        FrozenEncoder(folder, "text")


def test_pickled_weights_are_not_opened(tmp_path, bert_folder):
    folder, _ = checkpoint("BertModel", tmp_path / "encoder", bert_folder)
    path = Path(folder, "model.safetensors")
    torch.save(load_file(path), Path(folder, "pytorch_model.bin"))
    path.unlink()
    with pytest.raises(ValueError, match=r"no safetensors file, and pickled weights are not opened"):
        FrozenEncoder(folder, "text")


def test_code_in_a_folder_is_not_asked_about(tmp_path, bert_folder, monkeypatch):
    """A user at a terminal would be asked whether to run it, and ``yes |`` would."""
    config = {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}, "model_type": "evil"}
    folder = edited(bert_folder, tmp_path / "evil", "config.json", lambda c: c.update(config))
    Path(folder, "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError):
        FrozenEncoder(folder, "text")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_packaged_multilingual_encoder_can_be_copied_and_pickled_once_it_has_encoded():
    encoder = FrozenEncoder("use-multilingual")
    model = FreezeAlign([encoder], dim=8, seed=0, device="cpu")
    vectors = model.encode(TEXTS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_allclose(other.encode(TEXTS), vectors, atol=1e-6)
