from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers

from freezealign import FreezeAlign, FrozenEncoder, Pooling
from freezealign.encoders import EncoderReference
from freezealign.encoders.base import Encoder
from freezealign.encoders.callable import CallableEncoder
from freezealign.encoders.layers import AllLayers, OneLayer
from freezealign.encoders.timm import TimmEncoder
from freezealign.encoders.transformers import TransformersTextEncoder, TransformersVisionEncoder
from freezealign.space.recipes import default_pooling

BODY = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
VIT = {**BODY, "intermediate_size": 32, "image_size": 28, "patch_size": 7}
STAGES = {"hidden_sizes": [4, 6, 8, 12], "depths": [1, 2, 1, 1]}
SAM = {**BODY, "image_size": 28, "patch_size": 7, "output_channels": 12, "window_size": 2, "mlp_dim": 32}
SWIN = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 7, "image_size": 28, "patch_size": 2}
VISION = {
    "dinov3": (transformers.DINOv3ViTModel, transformers.DINOv3ViTConfig(num_register_tokens=4, **VIT)),
    "siglip": (transformers.SiglipVisionModel, transformers.SiglipVisionConfig(**VIT)),
    "clip": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**VIT)),
    "sam": (transformers.SamVisionModel, transformers.SamVisionConfig(global_attn_indexes=[1], **SAM)),
    "convnext": (transformers.ConvNextModel, transformers.ConvNextConfig(**STAGES)),
    "resnet": (transformers.ResNetModel, transformers.ResNetConfig(embedding_size=8, layer_type="basic", **STAGES)),
    "dinov3-convnext": (transformers.DINOv3ConvNextModel, transformers.DINOv3ConvNextConfig(**STAGES)),
    "swin": (transformers.SwinModel, transformers.SwinConfig(**SWIN)),
    "segformer": (transformers.SegformerModel, transformers.SegformerConfig(**STAGES)),
}
TIMM_VIT = {"img_size": 28, "patch_size": 7, "embed_dim": 24, "depth": 3, "num_heads": 2}
TIMM = {
    "timm-vit": ("vit_tiny_patch16_224", TIMM_VIT),
    "timm-registers": ("vit_small_patch14_reg4_dinov2", TIMM_VIT),
    "timm-no-cls": ("vit_tiny_patch16_224", {**TIMM_VIT, "class_token": False, "global_pool": "avg"}),
    "timm-attention-pool": ("vit_base_patch16_siglip_224", TIMM_VIT),
    "timm-dinov3": ("vit_small_patch16_dinov3", TIMM_VIT),
    "timm-resnet": ("test_resnet", {}),
    "timm-efficientnet": ("test_efficientnet", {}),
}
WIDTHS = {
    "dinov2": [24] * 2,
    "bert": [20] * 2,
    "sbert": [20] * 2,
    "gpt2": [24] * 3,
    "dinov3": [24] * 3,
    "siglip": [24] * 3,
    "clip": [24] * 3,
    "sam": [24, 24, 12],
    "convnext": [4, 6, 8, 12],
    "resnet": [4, 6, 8, 12],
    "dinov3-convnext": [4, 6, 8, 12],
    "swin": [24, 24],
    "segformer": [4, 6, 8, 12],
    "timm-vit": [24] * 3,
    "timm-registers": [24] * 3,
    "timm-no-cls": [24] * 3,
    "timm-attention-pool": [24] * 3,
    "timm-dinov3": [24] * 3,
    "timm-resnet": [32, 32, 48, 192, 96],
    "timm-efficientnet": [16, 24, 32, 48, 256],
}


def build_vision(name: str) -> TransformersVisionEncoder:
    kind, config = VISION[name]
    side = 64 if len(WIDTHS[name]) == 4 else 28
    return TransformersVisionEncoder(kind(config), transformers.ViTImageProcessor(size={"height": side, "width": side}))


def build_timm(name: str) -> TimmEncoder:
    architecture, options = TIMM[name]
    side = 28 if options else 64
    settings = {"input_size": (3, side, side)}
    return TimmEncoder(timm.create_model(architecture, pretrained_cfg_overlay=settings, **options))


def build_gpt2(bert_folder: str) -> TransformersTextEncoder:
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=24, n_layer=3, n_head=2)
    return TransformersTextEncoder(
        transformers.GPT2Model(config), transformers.AutoTokenizer.from_pretrained(bert_folder)
    )


@pytest.fixture(scope="module")
def build(dinov2_folder, bert_folder, sbert_folder):
    folders = {"dinov2": dinov2_folder, "bert": bert_folder, "sbert": sbert_folder}
    built: dict[str, Encoder] = {}

    def make(name: str) -> Encoder:
        torch.manual_seed(0)
        if name in folders:
            return FrozenEncoder(folders[name]).encoder
        if name in TIMM:
            return build_timm(name)
        return build_gpt2(bert_folder) if name == "gpt2" else build_vision(name)

    def get(name: str) -> Encoder:
        if name not in built:
            built[name] = make(name).requires_grad_(False).eval()
        return built[name]

    return get


@pytest.fixture(params=WIDTHS)
def name(request) -> str:
    return request.param


@pytest.fixture
def encoder(name, build) -> Encoder:
    return build(name)


@pytest.fixture
def batch(encoder, images, texts) -> dict:
    return encoder.preprocess(images[:3] if encoder.modality == "image" else texts[:3])


def same(first: dict, second: dict) -> bool:
    """Whether two features have the same keys and, bit for bit, the same values."""
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        for key, value in first.items()
    )


def all_layers(encoder: Encoder) -> AllLayers:
    return AllLayers(encoder, default_pooling(FrozenEncoder(encoder)))


# The layers of an encoder


def test_the_last_layer_is_what_forward_gives_bit_for_bit(encoder, batch):
    assert same(encoder.forward_layers(batch)[-1], encoder(batch))


def test_there_is_one_layer_a_block_or_stage_each_in_its_own_width(name, encoder, batch):
    layers = encoder.forward_layers(batch)
    assert [features["token_embeddings"].shape[-1] for features in layers] == WIDTHS[name]
    assert [features["cls_token_embeddings"].shape for features in layers] == [(3, width) for width in WIDTHS[name]]


def test_every_layer_of_an_image_is_on_its_grid_and_of_a_text_has_its_masks(encoder, batch):
    for features in encoder.forward_layers(batch):
        tokens = features["token_embeddings"].shape[1]
        if encoder.modality == "image":
            assert tokens == features["grid"][0] * features["grid"][1]
        else:
            assert tokens == features["attention_mask"].shape[1] == features["special_tokens_mask"].shape[1]


def test_asking_for_layers_does_not_change_what_forward_gives(encoder, batch):
    before = encoder(batch)
    encoder.forward_layers(batch)
    assert same(encoder(batch), before)


@pytest.mark.parametrize(("name", "prefix"), [("dinov2", 1), ("dinov3", 5), ("clip", 1), ("siglip", 0)])
def test_inner_layers_of_a_vit_are_its_hidden_states_behind_cls_and_registers(name, prefix, encoder, batch):
    states = encoder.model(**batch, output_hidden_states=True).hidden_states
    inner = encoder.forward_layers(batch)[:-1]
    for features, expected in zip(inner, states[1:-1], strict=True):
        assert torch.equal(features["token_embeddings"], expected[:, prefix:])
        summary = expected[:, 0] if prefix else expected.mean(1)
        assert torch.equal(features["cls_token_embeddings"], summary)


@pytest.mark.parametrize("name", ["bert", "sbert", "gpt2"])
def test_inner_layers_of_a_text_are_its_hidden_states(name, encoder, batch):
    model = encoder.model[0].model if name == "sbert" else encoder.model
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    states = model(**inputs, output_hidden_states=True).hidden_states
    inner = [features["token_embeddings"] for features in encoder.forward_layers(batch)[:-1]]
    assert all(torch.equal(tokens, expected) for tokens, expected in zip(inner, states[1:-1], strict=True))


@pytest.mark.parametrize(("name", "prefix"), [("timm-vit", 1), ("timm-registers", 5), ("timm-no-cls", 0)])
def test_inner_layers_of_a_timm_vit_are_what_its_blocks_give(name, prefix, encoder, batch):
    outputs: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda *args: outputs.append(args[-1])) for block in encoder.model.blocks]
    inner = encoder.forward_layers(batch)[:-1]
    for hook in hooks:
        hook.remove()
    for features, expected in zip(inner, outputs):
        assert torch.equal(features["token_embeddings"], expected[:, prefix:])
        torch.testing.assert_close(features["cls_token_embeddings"], expected[:, 0] if prefix else expected.mean(1))


@pytest.mark.parametrize("name", ["sam"])
def test_inner_maps_of_a_vit_that_works_on_maps_are_read_row_by_row(name, encoder, batch):
    states = encoder.model(**batch, output_hidden_states=True).hidden_states
    tokens = encoder.forward_layers(batch)[0]["token_embeddings"]
    assert torch.equal(tokens, states[1].flatten(1, 2))


@pytest.mark.parametrize("name", ["sbert"])
def test_only_the_last_layer_has_the_encoders_own_sentence_embedding(name, encoder, batch):
    assert ["sentence_embedding" in features for features in encoder.forward_layers(batch)] == [False, True]


def test_a_function_has_one_layer():
    encoder = CallableEncoder(lambda items: np.ones((len(items), 3)), "text")
    (features,) = encoder.forward_layers({"inputs": ["a", "b"]})
    assert features["sentence_embedding"].shape == (2, 3)


# One layer


def test_one_layer_gives_that_entry_counted_from_either_end(name, encoder, batch):
    layers = encoder.forward_layers(batch)
    for index, features in enumerate(layers):
        for number in (index + 1, index - len(layers)):
            one = OneLayer(encoder, number)
            assert same(one(batch), features)
            assert (one.layer, one.dim) == (index + 1, WIDTHS[name][index])


@pytest.mark.parametrize("layer", [0, 3, -3, 99])
def test_a_layer_that_is_not_there_is_refused_with_how_many_there_are(layer, bert_folder):
    with pytest.raises(ValueError, match=rf"layer={layer}: the encoder has 2 layers"):
        FrozenEncoder(bert_folder, layer=layer)


def test_the_layer_is_part_of_the_identity_and_the_weights_are_the_same(bert_folder):
    whole, first, last = (FrozenEncoder(bert_folder, layer=layer) for layer in (None, 1, 2))
    assert whole.fingerprint == first.fingerprint == last.fingerprint
    identities = [json.dumps(encoder.get_config_dict()["preprocessing"]) for encoder in (whole, first, last)]
    assert len(set(identities)) == 3
    assert first.max_seq_length == whole.max_seq_length == 16
    assert first.num_parameters() == whole.num_parameters()


def test_a_layer_counted_from_the_end_is_stored_as_a_positive_number(bert_folder):
    assert FrozenEncoder(bert_folder, layer=-2).reference.layer == 1


def test_one_layer_of_an_encoder_made_by_hand(build, images):
    encoder = build("timm-vit")
    frozen = FrozenEncoder(encoder, layer=2)
    inputs = frozen.preprocess(images[:2])
    assert same(frozen(inputs), encoder.forward_layers(inputs)[1]) and frozen.reference.layer == 2


def test_one_layer_of_a_function_is_the_function():
    frozen = FrozenEncoder(lambda items: np.eye(len(items), 4), "text", layer=-1)
    assert frozen(frozen.preprocess(["a", "b"]))["token_embeddings"].shape == (2, 1, 4)


def test_the_layers_of_another_modality_cannot_be_counted():
    encoder = CallableEncoder(lambda items: np.ones((len(items), 3)), "audio", dim=3)
    with pytest.raises(ValueError, match="layers of encoders of 'audio' cannot be counted"):
        OneLayer(encoder, 1)


@pytest.mark.parametrize("wrap", [lambda encoder: OneLayer(encoder, 1), all_layers], ids=["one", "all"])
def test_counting_layers_changes_no_statistics_of_a_model_in_training_mode(wrap):
    encoder = build_timm("timm-resnet").train()
    before = encoder.fingerprint()
    assert wrap(encoder).fingerprint() == before


@pytest.mark.parametrize("recipe", ["token", "pooled"])
def test_a_saved_model_on_one_layer_gives_the_same_when_loaded(recipe, dinov2_folder, bert_folder, images, tmp_path):
    encoders = [FrozenEncoder(dinov2_folder, layer=1), FrozenEncoder(bert_folder, layer=-2)]
    model = FreezeAlign(encoders, recipe=recipe, dim=8, seed=0, device="cpu")
    model.save_pretrained(tmp_path)
    loaded = FreezeAlign.from_pretrained(tmp_path, device="cpu")
    assert [loaded.encoders[key].reference.layer for key in ("image", "text")] == [1, 1]
    np.testing.assert_array_equal(loaded.encode(images[:3]), model.encode(images[:3]))
    np.testing.assert_array_equal(loaded.encode(["a red apple"]), model.encode(["a red apple"]))


def test_a_saved_model_refuses_another_layer(bert_folder, tmp_path):
    FrozenEncoder(bert_folder, layer=1).save(str(tmp_path))
    path = Path(tmp_path, "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer": 2}))
    with pytest.raises(ValueError, match="its preprocessing"):
        FrozenEncoder.load(str(tmp_path))


def test_a_folder_saved_before_there_were_layers_still_loads(bert_folder, tmp_path):
    FrozenEncoder(bert_folder).save(str(tmp_path))
    path = Path(tmp_path, "config.json")
    config = json.loads(path.read_text())
    assert config.pop("layer") is None
    path.write_text(json.dumps(config))
    assert FrozenEncoder.load(str(tmp_path)).reference.layer is None


def test_a_reference_with_a_layer_loads_that_layer(bert_folder):
    reference = FrozenEncoder(bert_folder, layer=1).reference
    assert isinstance(FrozenEncoder(EncoderReference(**asdict(reference))).encoder, OneLayer)


# All layers


def test_all_layers_are_each_layers_pooled_vector_side_by_side(name, encoder, batch):
    wrapped = all_layers(encoder)
    output = wrapped(batch)
    assert list(output) == ["sentence_embedding"]
    assert wrapped.widths == WIDTHS[name] and wrapped.dim == sum(WIDTHS[name])
    slices = output["sentence_embedding"].split(wrapped.widths, dim=-1)
    for vectors, features in zip(slices, encoder.forward_layers(batch), strict=True):
        assert torch.equal(vectors, wrapped.pooling(features)["sentence_embedding"])


@pytest.mark.parametrize(("name", "mode"), [("dinov2", "cls"), ("bert", "mean"), ("sbert", "mean")])
def test_all_layers_are_identified_by_the_encoder_and_how_they_are_pooled(name, mode, encoder):
    wrapped = all_layers(encoder)
    assert wrapped.fingerprint() == encoder.fingerprint()
    assert wrapped.preprocessing == {**encoder.preprocessing, "layers": "all", "layer_pooling": mode}
    other = AllLayers(encoder, Pooling("max"))
    assert other.preprocessing != wrapped.preprocessing


def test_all_layers_of_a_function_are_its_vectors():
    encoder = CallableEncoder(lambda items: np.eye(len(items), 4), "text")
    assert AllLayers(encoder, Pooling("mean"))({"inputs": ["a", "b"]})["sentence_embedding"].tolist() == (
        torch.eye(2, 4).tolist()
    )


def test_all_layers_can_be_extracted_as_pooled_features(build, pairs, tmp_path):
    encoders = [FrozenEncoder(all_layers(build(name))) for name in ("timm-efficientnet", "sbert")]
    model = FreezeAlign(encoders, recipe="pooled", dim=8, seed=0, device="cpu")
    store = model.extract_features(pairs, tmp_path / "store", level="pooled", dtype="float32", show_progress_bar=False)
    for encoder, items in zip(encoders, zip(*pairs)):
        stored = store[encoder.modality].load(np.arange(len(pairs)))["sentence_embedding"].numpy()
        expected = encoder(encoder.preprocess(list(items)))["sentence_embedding"]
        np.testing.assert_allclose(stored, expected, rtol=1e-4, atol=1e-5)


def test_features_of_all_layers_are_not_taken_for_those_of_the_last(dinov2_folder, bert_folder, pairs, tmp_path):
    encoders = [FrozenEncoder(all_layers(FrozenEncoder(folder).encoder)) for folder in (dinov2_folder, bert_folder)]
    model = FreezeAlign(encoders, recipe="pooled", dim=8, device="cpu")
    store = model.extract_features(pairs, tmp_path / "store", level="pooled", show_progress_bar=False)
    other = FreezeAlign([dinov2_folder, bert_folder], recipe="pooled", dim=8, device="cpu")
    with pytest.raises(ValueError, match=re.escape("made by another encoder or in another way")):
        other.fit(store, epochs=1, show_progress_bar=False)
