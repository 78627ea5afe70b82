"""Several encoders of one modality side by side: what they give, by definition, and what they are known by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate, layer_norm, normalize

from freezealign import FrozenEncoder, JointEncoder, Pooling
from freezealign.encoders.callable import CallableEncoder
from freezealign.encoders.joint import resample

CLOSE = {"atol": 1e-6, "rtol": 0}


def unit(x: torch.Tensor) -> torch.Tensor:
    return normalize(layer_norm(x, x.shape[-1:]), dim=-1)


def side_by_side(*parts: torch.Tensor) -> torch.Tensor:
    return torch.cat([unit(part) for part in parts], -1)


def pixels(items):
    return np.stack([np.asarray(item.resize((3, 2)), np.float32).reshape(-1) for item in items])


def give(encoder: FrozenEncoder, items) -> dict:
    return encoder(encoder.preprocess(items))


def test_vectors_of_images_are_cls_vectors_each_of_length_1(dinov2_folder, vit_folders, images):
    parts = [FrozenEncoder(dinov2_folder), FrozenEncoder(vit_folders[14])]
    found = give(JointEncoder(parts), images)
    expected = side_by_side(*(give(part, images)["cls_token_embeddings"] for part in parts))
    torch.testing.assert_close(found["cls_token_embeddings"], expected, **CLOSE)
    assert expected.shape[1] == 24 + 16
    torch.testing.assert_close(expected.norm(dim=1), torch.full((12,), 2**0.5), **CLOSE)


def test_tokens_are_put_side_by_side_where_grids_agree(dinov2_folder, vit_folders, images):
    parts = [FrozenEncoder(dinov2_folder), FrozenEncoder(vit_folders[7])]
    found = give(JointEncoder(parts), images)
    outputs = [give(part, images) for part in parts]
    assert found["grid"] == outputs[0]["grid"] == outputs[1]["grid"] == (4, 4)
    torch.testing.assert_close(
        found["token_embeddings"], side_by_side(*(o["token_embeddings"] for o in outputs)), **CLOSE
    )


@pytest.mark.parametrize("order", [1, -1])
def test_tokens_are_resampled_to_the_finest_grid_whichever_comes_first(order, dinov2_folder, vit_folders, images):
    parts = [FrozenEncoder(dinov2_folder), FrozenEncoder(vit_folders[14])]
    fine, coarse = (give(part, images)["token_embeddings"] for part in parts)
    maps = coarse.transpose(1, 2).unflatten(2, (2, 2))
    finer = interpolate(maps, (4, 4), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    found = give(JointEncoder(parts[::order]), images)
    assert found["grid"] == (4, 4)
    torch.testing.assert_close(found["token_embeddings"], side_by_side(*(fine, finer)[::order]), **CLOSE)


def test_a_grid_is_cut_to_what_an_encoder_that_crops_sees_of_the_picture():
    """On an 8 x 8 grid whose tokens hold their own place, half of it around the centre is -0.5 to 0.5."""

    def places(n: int) -> torch.Tensor:
        return (torch.arange(n) + 0.5) / n * 2 - 1

    ramp = torch.stack(torch.meshgrid(places(8), places(8), indexing="ij"), -1).reshape(1, 64, 2)
    found = resample(ramp, (8, 8), (4, 4), 0.5)
    expected = torch.stack(torch.meshgrid(places(4) / 2, places(4) / 2, indexing="ij"), -1).reshape(1, 16, 2)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_encoders_that_crop_differently_are_laid_over_each_other(dinov2_folder, vit_folders, images):
    whole, cropping = FrozenEncoder(dinov2_folder), FrozenEncoder(vit_folders[7])
    cropping.encoder.processor.do_center_crop = True
    cropping.encoder.processor.size = {"height": 56, "width": 56}
    cropping.encoder.processor.crop_size = {"height": 28, "width": 28}
    joint = JointEncoder([whole, cropping])
    assert joint.encoder.center_crop_share == cropping.encoder.center_crop_share == 0.5
    outputs = [give(part, images) for part in joint.parts]
    found = give(joint, images)["token_embeddings"]
    mine = resample(outputs[0]["token_embeddings"], (4, 4), (4, 4), 0.5)
    torch.testing.assert_close(found, side_by_side(mine, outputs[1]["token_embeddings"]), **CLOSE)


def test_texts_are_pooled_first_and_give_one_vector(bert_folder, sbert_folder, texts):
    parts = [FrozenEncoder(bert_folder), FrozenEncoder(sbert_folder)]
    found = give(JointEncoder(parts), texts)
    pooled = [Pooling("mean")(give(part, texts))["sentence_embedding"] for part in parts]
    torch.testing.assert_close(found["sentence_embedding"], side_by_side(*pooled), **CLOSE)
    assert found["token_embeddings"].shape == (12, 1, 40) and "attention_mask" not in found


def test_a_function_beside_an_encoder_leaves_one_vector_an_image(dinov2_folder, images):
    parts = [FrozenEncoder(dinov2_folder), FrozenEncoder(pixels, "image")]
    joint = JointEncoder(parts)
    found = give(joint, images)
    expected = side_by_side(give(parts[0], images)["cls_token_embeddings"], torch.from_numpy(pixels(images)))
    torch.testing.assert_close(found["sentence_embedding"], expected, **CLOSE)
    assert not joint.encoder.has_grid and "grid" not in found


def test_neither_width_nor_scale_decides_what_an_encoder_counts():
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(size=(2, 300)) * 1e4, rng.normal(size=(2, 4)) * 1e-4
    functions = [lambda items: wide[: len(items)], lambda items: narrow[: len(items)]]
    joint = JointEncoder([FrozenEncoder(CallableEncoder(own, "text", fingerprint=str(own))) for own in functions])
    x, y = give(joint, ["a", "b"])["sentence_embedding"]
    cosines = [float(unit(torch.from_numpy(own).float()).prod(0).sum()) for own in (wide, narrow)]
    assert float(torch.cosine_similarity(x, y, 0)) == pytest.approx(np.mean(cosines), abs=1e-4)


def test_items_are_read_by_each_encoder_in_its_own_way(dinov2_folder, vit_folders, images):
    joint = JointEncoder([FrozenEncoder(dinov2_folder, image_size=42), FrozenEncoder(vit_folders[7])])
    batch = joint.preprocess(images[:2])
    assert batch["0.pixel_values"].shape[-1] == 42 and batch["1.pixel_values"].shape[-1] == 28
    assert joint(batch)["grid"] == (6, 6)


def test_a_text_may_be_of_any_length_beside_others(bert_folder, sbert_folder, texts):
    joint = JointEncoder([bert_folder, sbert_folder])
    together = give(joint, texts)["sentence_embedding"]
    alone = torch.cat([give(joint, [text])["sentence_embedding"] for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_it_is_frozen_and_counts_the_parameters_of_all(dinov2_folder, vit_folders):
    parts = [FrozenEncoder(dinov2_folder), FrozenEncoder(vit_folders[7])]
    joint = JointEncoder(parts).train()
    assert not any(module.training for module in joint.modules())
    assert not any(parameter.requires_grad for parameter in joint.parameters())
    assert joint.num_parameters() == sum(part.num_parameters() for part in parts)
    assert joint.name == f"{dinov2_folder}+{vit_folders[7]}"


def test_sets_of_sets_are_one_set(dinov2_folder, vit_folders):
    pair = JointEncoder([dinov2_folder, vit_folders[7]])
    assert [part.name for part in JointEncoder([pair, vit_folders[14]]).parts] == [
        dinov2_folder,
        vit_folders[7],
        vit_folders[14],
    ]


def test_other_members_another_order_and_another_setting_are_another_encoder(dinov2_folder, vit_folders):
    sets = [
        [dinov2_folder, vit_folders[7]],
        [vit_folders[7], dinov2_folder],
        [dinov2_folder, vit_folders[14]],
        [FrozenEncoder(dinov2_folder, image_size=42), vit_folders[7]],
    ]
    identities = [str(JointEncoder(own).identity) for own in sets]
    assert len(set(identities)) == len(sets)
    assert str(JointEncoder(sets[0]).identity) == identities[0]


def test_casting_does_not_change_what_it_is(dinov2_folder, vit_folders):
    joint = JointEncoder([dinov2_folder, vit_folders[7]])
    before = dict(JointEncoder([dinov2_folder, vit_folders[7]]).identity)
    assert joint.to(torch.bfloat16).identity == before


def test_encoders_of_two_modalities_are_refused(dinov2_folder, bert_folder):
    with pytest.raises(ValueError, match=r"one modality, got .*\(image\), .*\(text\)"):
        JointEncoder([dinov2_folder, bert_folder])


def test_no_encoder_is_refused():
    with pytest.raises(ValueError, match="one modality, got none"):
        JointEncoder([])


def test_saved_it_is_references_only_and_loads_the_same(dinov2_folder, vit_folders, images, tmp_path):
    joint = JointEncoder([FrozenEncoder(dinov2_folder, layer=1), FrozenEncoder(vit_folders[14])])
    joint.save(str(tmp_path))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "config.json",
        "encoder_0/config.json",
        "encoder_1/config.json",
    ]
    loaded = JointEncoder.load(str(tmp_path))
    assert loaded.identity == joint.identity and loaded.name == joint.name
    torch.testing.assert_close(give(loaded, images), give(joint, images))
