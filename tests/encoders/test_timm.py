from __future__ import annotations

import json
from functools import cache

import pytest
import timm
import torch
from PIL import Image

from freezealign import FreezeAlign, FrozenEncoder
from freezealign.encoders.timm import TimmEncoder

VIT = {"img_size": 28, "patch_size": 7, "embed_dim": 24, "depth": 2, "num_heads": 2}
NO_CLS = {"class_token": False, "global_pool": "avg"}
SWIN = {"patch_size": 4, "window_size": 4, "embed_dim": 6, "depths": (1, 1), "num_heads": (2, 2)}

MODELS = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit-wide": ("vit_tiny_patch16_224", {**VIT, "img_size": (21, 28)}),
    "vit-registers": ("vit_small_patch14_reg4_dinov2", VIT),
    "vit-registers-no-cls": (
        "vit_tiny_patch16_224",
        {**VIT, "class_token": False, "reg_tokens": 4, "global_pool": "avg"},
    ),
    "vit-registers-attention-pool": ("vit_base_patch16_siglip_224", {**VIT, "reg_tokens": 4}),
    "vit-attention-pool": ("vit_base_patch16_siglip_224", VIT),
    "vit-average-pool": ("vit_tiny_patch16_224", {**VIT, **NO_CLS}),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "dinov3": ("vit_small_patch16_dinov3", {**VIT, "img_size": 32, "patch_size": 8}),
    "resnet": ("test_resnet", {}),
    "efficientnet": ("test_efficientnet", {}),
    "swin": ("swin_tiny_patch4_window7_224", {**SWIN, "img_size": (64, 32)}),
    "swin-as-wide-as-its-grid": ("swin_tiny_patch4_window7_224", {**SWIN, "img_size": 64, "embed_dim": 4}),
}
PREFIXES = {
    "vit": 1,
    "vit-wide": 1,
    "vit-registers": 5,
    "vit-registers-no-cls": 4,
    "vit-registers-attention-pool": 4,
    "vit-attention-pool": 0,
    "deit-distilled": 2,
    "dinov3": 5,
}
SIZES = {
    "vit-wide": (21, 28),
    "dinov3": (32, 32),
    "resnet": (64, 96),
    "efficientnet": (64, 96),
    "swin": (64, 32),
    "swin-as-wide-as-its-grid": (64, 64),
}


@cache
def build(name: str, image_size: int | None = None) -> tuple[FrozenEncoder, torch.nn.Module]:
    torch.manual_seed(0)
    architecture, options = MODELS[name]
    settings = {"input_size": (3, *SIZES.get(name, (28, 28)))}
    model = timm.create_model(architecture, pretrained=False, pretrained_cfg_overlay=settings, **options)
    return FrozenEncoder(TimmEncoder(model, image_size)), model


def pixels(name: str, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *SIZES.get(name, (28, 28)), generator=generator)


@pytest.mark.parametrize(
    ("name", "grid", "width"),
    [
        ("vit", (4, 4), 24),
        ("vit-wide", (3, 4), 24),
        ("vit-registers", (4, 4), 24),
        ("vit-registers-no-cls", (4, 4), 24),
        ("vit-attention-pool", (4, 4), 24),
        ("deit-distilled", (4, 4), 24),
        ("dinov3", (4, 4), 24),
        ("resnet", (2, 3), 96),
        ("efficientnet", (2, 3), 256),
        ("swin", (8, 4), 12),
        ("swin-as-wide-as-its-grid", (8, 8), 8),
    ],
)
def test_an_image_gives_a_grid_of_patches_and_a_summary(name, grid, width):
    encoder, _ = build(name)
    features = encoder({"pixel_values": pixels(name)})
    assert (features["grid"], encoder.get_embedding_dimension()) == (grid, width)
    assert features["token_embeddings"].shape == (2, grid[0] * grid[1], width)
    assert features["cls_token_embeddings"].shape == (2, width)


@pytest.mark.parametrize("name", PREFIXES)
def test_patches_are_the_tokens_behind_cls_registers_and_distillation_token(name):
    encoder, model = build(name)
    tokens = model.forward_features(pixels(name))
    patches = encoder({"pixel_values": pixels(name)})["token_embeddings"]
    torch.testing.assert_close(patches, tokens[:, PREFIXES[name] :])


@pytest.mark.parametrize("name", ["vit", "vit-registers", "deit-distilled", "dinov3"])
def test_the_summary_of_a_vit_is_its_cls_token(name):
    encoder, model = build(name)
    tokens = model.forward_features(pixels(name))
    torch.testing.assert_close(encoder({"pixel_values": pixels(name)})["cls_token_embeddings"], tokens[:, 0])


@pytest.mark.parametrize("name", ["vit-attention-pool", "vit-registers-attention-pool"])
def test_the_summary_of_a_model_that_pools_by_attention_is_what_it_pools(name):
    encoder, model = build(name)
    pooled = model.forward_head(model.forward_features(pixels(name)), pre_logits=True)
    torch.testing.assert_close(encoder({"pixel_values": pixels(name)})["cls_token_embeddings"], pooled)


@pytest.mark.parametrize("name", ["vit-average-pool", "vit-registers-no-cls"])
def test_without_cls_the_summary_is_the_mean_of_the_patches_and_never_a_register(name):
    features = build(name)[0]({"pixel_values": pixels(name)})
    torch.testing.assert_close(features["cls_token_embeddings"], features["token_embeddings"].mean(1))


@pytest.mark.parametrize("name", ["resnet", "efficientnet"])
def test_a_feature_map_is_read_row_by_row(name):
    encoder, model = build(name)
    feature_map = model.forward_features(pixels(name))
    tokens = encoder({"pixel_values": pixels(name)})["token_embeddings"]
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(tokens[:, row * 3 + column], feature_map[:, :, row, column])


@pytest.mark.parametrize("name", ["resnet", "efficientnet"])
def test_the_summary_of_a_feature_map_is_its_global_average(name):
    encoder, model = build(name)
    feature_map = model.forward_features(pixels(name))
    summary = encoder({"pixel_values": pixels(name)})["cls_token_embeddings"]
    torch.testing.assert_close(summary, feature_map.mean((2, 3)))


@pytest.mark.parametrize("name", ["swin", "swin-as-wide-as-its-grid"])
def test_a_feature_map_with_channels_last_is_read_row_by_row(name):
    encoder, model = build(name)
    feature_map = model.forward_features(pixels(name))
    features = encoder({"pixel_values": pixels(name)})
    _, columns = features["grid"]
    for row, column in [(0, 0), (0, 1), (1, 0), (7, 3)]:
        torch.testing.assert_close(features["token_embeddings"][:, row * columns + column], feature_map[:, row, column])


def test_changing_one_patch_of_a_wide_image_changes_its_token_most():
    patch = torch.randn(3, 7, 7, generator=torch.Generator().manual_seed(1))
    batch = torch.zeros(13, 3, 21, 28)
    for cell in range(12):
        top, left = 7 * (cell // 4), 7 * (cell % 4)
        batch[cell, :, top : top + 7, left : left + 7] = patch
    tokens = build("vit-wide")[0]({"pixel_values": batch})["token_embeddings"]
    changes = (tokens[:12] - tokens[12:]).norm(dim=-1)
    assert changes.argmax(1).tolist() == list(range(12))


@pytest.mark.parametrize("name", ["vit", "vit-attention-pool", "dinov3", "resnet", "swin"])
def test_images_of_any_size_become_one_batch_and_can_be_encoded(name, images):
    encoder, _ = build(name)
    assert FreezeAlign([encoder], dim=8, device="cpu").encode(images[:3]).shape == (3, 8)


@pytest.mark.parametrize(
    ("name", "image_size", "grid"), [("resnet", 96, (3, 3)), ("vit", 42, (6, 6)), ("dinov3", 48, (6, 6))]
)
def test_image_size_replaces_the_models_size(name, image_size, grid, images):
    encoder, _ = build(name, image_size)
    batch = encoder.preprocess(images[:2])
    assert batch["pixel_values"].shape == (2, 3, image_size, image_size)
    assert encoder(batch)["grid"] == grid


def test_normalisation_is_the_models_own():
    encoder, model = build("vit-registers")
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    batch = encoder.preprocess([Image.new("RGB", (50, 40), (255, 0, 51))])["pixel_values"]
    expected = [(value - m) / s for value, m, s in zip((1.0, 0.0, 0.2), mean, std)]
    torch.testing.assert_close(batch, torch.tensor(expected).view(1, 3, 1, 1).expand(1, 3, 28, 28))


def test_preprocessing_is_that_of_timm_for_evaluation(images):
    from timm.data import create_transform, resolve_model_data_config

    encoder, model = build("efficientnet")
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    torch.testing.assert_close(encoder.preprocess(images[:1])["pixel_values"][0], transform(images[0]))


def test_preprocessing_can_be_saved_as_json():
    preprocessing = build("vit")[0].get_config_dict()["preprocessing"]
    assert json.loads(json.dumps(preprocessing)) == preprocessing
    assert preprocessing["mean"] == [0.5, 0.5, 0.5] and preprocessing["input_size"] == [3, 28, 28]


def test_image_size_is_part_of_the_identity():
    assert build("resnet", 96)[0].encoder.preprocessing != build("resnet")[0].encoder.preprocessing


def test_a_classifier_on_top_makes_no_difference():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False, num_classes=7)
    encoder = FrozenEncoder(TimmEncoder(model))
    assert encoder({"pixel_values": pixels("resnet")})["token_embeddings"].shape == (2, 6, 96)
