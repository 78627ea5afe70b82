"""Models whose towers have several encoders side by side: training, stores, saving, changing, ranking."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from freezealign import (
    FeatureStore,
    FreezeAlign,
    FrozenEncoder,
    JointEncoder,
    Pooling,
    SegmentationEvaluator,
    TokenProjector,
    rank_encoders,
)
from freezealign.encoders.callable import CallableEncoder
from freezealign.features import join_encoders
from freezealign.inputs import InputError

POOLING = ["pooled", "linear", "glu", "kernel", "relative"]
SLACK = {"atol": 1e-5, "rtol": 0}


@pytest.fixture
def names(dinov2_folder, vit_folders, bert_folder, sbert_folder) -> dict[str, list[str]]:
    return {"image": [dinov2_folder, vit_folders[14]], "text": [bert_folder, sbert_folder]}


def make(names, **options) -> FreezeAlign:
    return FreezeAlign(names, **{"dim": 8, "seed": 0, "device": "cpu", **options})


@pytest.mark.parametrize("recipe", POOLING)
def test_recipes_that_pool_are_trained_saved_and_loaded(recipe, names, pairs, images, texts, tmp_path):
    model = make(names, recipe=recipe)
    model.fit(pairs, epochs=1, batch_size=4, show_progress_bar=False)
    expected = model.encode([*images, *texts])
    model.save_pretrained(tmp_path)
    loaded = FreezeAlign.from_pretrained(tmp_path, device="cpu")
    np.testing.assert_array_equal(loaded.encode([*images, *texts]), expected)
    assert isinstance(loaded.encoders["image"], JointEncoder)
    assert len(np.unique(expected.round(4), axis=0)) > len(images)


@pytest.mark.parametrize("cache", [True, False])
def test_tokens_of_images_are_trained_beside_one_text_encoder(cache, names, bert_folder, pairs, images, tmp_path):
    model = make({**names, "text": bert_folder}, recipe="token")
    model.fit(pairs, epochs=1, batch_size=4, init="random", cache_features=cache, show_progress_bar=False)
    model.save_pretrained(tmp_path)
    loaded = FreezeAlign.from_pretrained(tmp_path, device="cpu")
    np.testing.assert_array_equal(loaded.encode(images), model.encode(images))
    assert [block.in_dim for block in model.tower("image") if isinstance(block, TokenProjector)] == [24 + 16]


def test_the_default_fit_of_few_pairs_is_a_kernel(names, pairs):
    model = make(names)
    assert model.recipe == "auto"
    assert [type(block).__name__ for block in model.tower("image")][1] == "TokenProjector"
    assert [type(block).__name__ for block in model.tower("text")][1] == "Pooling"
    model.fit(pairs, show_progress_bar=False)
    assert model.recipe == "kernel"


def test_the_default_trains_what_it_has_without_a_cache(names, pairs, images, texts):
    model = make(names)
    model.fit(pairs, epochs=1, batch_size=4, cache_features=False, show_progress_bar=False)
    assert model.encode([images[0], texts[0]]).shape == (2, 8)


def test_tokens_of_several_text_encoders_are_refused_with_the_remedy(names):
    with pytest.raises(ValueError, match=r"recipe 'token' reads tokens, and the text encoders .*'pooled', 'linear'"):
        make(names, recipe="token")


@pytest.mark.parametrize("level", ["pooled", "tokens"])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_encoding_items_is_encoding_their_stored_features(level, where, names, pairs, images, texts, tmp_path):
    model = make(names, recipe="linear")
    path = tmp_path / "store" if where == "disk" else None
    store = model.extract_features(pairs, path, level=level, dtype="float32", show_progress_bar=False)
    assert store.origins["image"].name == "+".join(names["image"])
    np.testing.assert_allclose(model.encode(store["image"]), model.encode(images), **SLACK)
    np.testing.assert_allclose(model.encode(store["text"]), model.encode(texts), **SLACK)
    other = make({**names, "image": names["image"][::-1]}, recipe="linear")
    with pytest.raises(ValueError, match="made by another encoder"):
        other.fit(store)


def test_stored_vectors_are_those_of_the_parts(names, pairs):
    joint = make(names, recipe="linear").extract_features(pairs, dtype="float32", show_progress_bar=False)
    parts = [
        make({"image": image, "text": text}, recipe="linear").extract_features(pairs, show_progress_bar=False)
        for image, text in zip(names["image"], names["text"])
    ]
    for modality in ("image", "text"):
        vectors = [part[modality].vectors() for part in parts]
        centred = [own - own.mean(1, keepdim=True) for own in vectors]
        expected = torch.cat([own / own.norm(dim=1, keepdim=True) for own in centred], 1)
        torch.testing.assert_close(joint[modality].vectors(), expected, **SLACK)


@pytest.mark.parametrize("patch", [7, 14])
def test_patches_are_embedded_on_agreeing_and_disagreeing_grids(patch, dinov2_folder, vit_folders, bert_folder, images):
    model = make({"image": [vit_folders[patch], dinov2_folder], "text": bert_folder}, recipe="token")
    found = model.encode_tokens(images[:3])
    assert {item.grid for item in found} == {(4, 4)} and {item.embeddings.shape for item in found} == {(16, 8)}
    masks = [np.ones(picture.size[::-1], np.uint8) for picture in images[:2]]
    scores = SegmentationEvaluator(images[:2], masks, ["red apple", "car"], show_progress_bar=False)(model)
    assert 0 <= scores["miou"] <= 1


def test_an_item_that_one_encoder_cannot_take_costs_itself(dinov2_folder, bert_folder, pairs, images):
    def moody(items):
        if any(item.size == images[3].size for item in items):
            raise RuntimeError("not this one")
        return np.stack([np.asarray(item.resize((2, 2)), np.float32).reshape(-1) for item in items])

    function = FrozenEncoder(CallableEncoder(moody, "image", fingerprint="moody"))
    model = make({"image": [dinov2_folder, function], "text": bert_folder}, recipe="linear")
    store = model.extract_features(pairs, show_progress_bar=False)
    assert [entry.index for entry in store.skipped] == [3] and len(store) == 11
    assert "not this one" in store.skipped[0].reason
    with pytest.raises(InputError, match=r"item 3: .*not this one"):
        model.encode(images)


def test_features_of_one_encoder_that_are_not_finite_cost_their_pair(dinov2_folder, bert_folder, pairs, images):
    def broken(items):
        sizes = np.array([item.size for item in items], np.float32)
        sizes[[item.size == images[5].size for item in items]] = np.inf
        return np.concatenate([sizes, np.ones_like(sizes)], 1)

    function = FrozenEncoder(CallableEncoder(broken, "image", fingerprint="broken"))
    model = make({"image": [dinov2_folder, function], "text": bert_folder}, recipe="linear")
    assert [entry.index for entry in model.extract_features(pairs, show_progress_bar=False).skipped] == [5]


def test_encoders_of_another_modality_are_refused(dinov2_folder, bert_folder):
    with pytest.raises(ValueError, match="is an encoder of text, not of image"):
        make({"image": [dinov2_folder, FrozenEncoder(bert_folder)], "text": bert_folder})


def test_a_list_may_stand_in_a_list(names):
    model = make([names["image"], names["text"]])
    assert [len(encoder.parts) for encoder in model.encoders.values()] == [2, 2]


def test_two_encoders_of_one_modality_say_how_to_put_them_side_by_side(names):
    with pytest.raises(ValueError, match="put them side by side in one"):
        make([*names["image"], *names["text"]])


def test_a_list_of_one_name_is_that_encoder_and_a_list_of_blocks_is_a_tower(dinov2_folder, bert_folder):
    encoder = FrozenEncoder(dinov2_folder)
    blocks = [encoder, TokenProjector(24, 8, cls=True), Pooling("cls+patch_mean")]
    model = make({"image": blocks, "text": [bert_folder]})
    assert model.encoders["image"] is encoder and not isinstance(model.encoders["text"], JointEncoder)


def test_an_encoder_that_changed_is_named_when_a_model_is_loaded(names, pairs, tmp_path):
    model = make(names, recipe="linear")
    model.save_pretrained(tmp_path)
    path = tmp_path / "text_0_JointEncoder" / "encoder_1" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "fingerprint": "0" * 64}))
    with pytest.raises(ValueError, match=f"'{names['text'][1]}' is not the one"):
        FreezeAlign.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoders", ["encoder_0"], "is not the one"),
        ("encoders", ["encoder_0", "../text_0_JointEncoder/encoder_0"], r"\.\."),
        ("encoders", [], "got none"),
        ("encoders", ["."], "config.json"),
        ("encoders", "encoder_0", "encoders"),
        ("encoders", ["encoder_0", "nowhere"], "nowhere"),
        ("fingerprint", None, "fingerprint"),
    ],
)
def test_damaged_references_are_refused(key, value, message, names, tmp_path):
    make(names, recipe="linear").save_pretrained(tmp_path)
    path = tmp_path / "image_0_JointEncoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises((ValueError, OSError), match=message):
        FreezeAlign.from_pretrained(tmp_path)


def test_other_encoders_may_be_loaded_knowingly(names, images, tmp_path):
    model = make(names, recipe="linear")
    model.save_pretrained(tmp_path)
    loaded = FreezeAlign.from_pretrained(tmp_path, encoders={"image": names["image"]}, device="cpu")
    np.testing.assert_array_equal(loaded.encode(images), model.encode(images))
    with pytest.raises(ValueError, match="wide"):
        FreezeAlign.from_pretrained(tmp_path, encoders={"image": names["image"][0]})


def test_encoders_are_swapped_for_several_and_back(names, images):
    model = make({"image": names["image"][0], "text": names["text"][0]}, recipe="linear")
    with pytest.raises(ValueError, match="reset=True"):
        model.swap_encoder("image", names["image"])
    model.swap_encoder("image", names["image"], reset=True)
    assert [block.in_dim for block in model.tower("image").blocks[1:]] == [40]
    model.swap_encoder("image", tuple(FrozenEncoder(name) for name in names["image"]))
    model.swap_encoder("image", names["image"][0], reset=True)
    assert model.encode(images).shape == (12, 8)


def test_the_card_names_every_encoder(names, tmp_path):
    make(names, recipe="linear").save_pretrained(tmp_path)
    card = Path(tmp_path, "README.md").read_text()
    assert all(f"`{name}`" in card for side in names.values() for name in side)


def test_sentence_transformers_reads_them(names, images, texts, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = make(names, recipe="linear")
    model.save_pretrained(tmp_path)
    loaded = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    for converted in (model.to_sentence_transformer(), loaded):
        np.testing.assert_allclose(converted.encode(texts), model.encode(texts), **SLACK)
        np.testing.assert_allclose(converted.encode(images), model.encode(images), **SLACK)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_a_set_is_ranked_beside_its_members(layers, names, images, pairs, tmp_path):
    options = {"metrics": ["cka"], "permutations": 20, "resamples": 20, "show_progress_bar": False, "layers": layers}
    sides = [tuple(names["image"]), *names["image"]], [names["text"][0]]
    ranking = rank_encoders(*sides, pairs, path=tmp_path, **options)
    assert sorted(ranking.vision_costs) == sorted(["+".join(names["image"]), *names["image"]])
    assert ranking.vision_costs["+".join(names["image"])].dim == 40
    again = rank_encoders({"both": names["image"]}, names["text"][:1], pairs, path=tmp_path, **options)
    assert again.best.vision == "both"


def test_sets_of_another_modality_or_of_stores_are_refused_before_anything_runs(names, pairs):
    with pytest.raises(ValueError, match="among encoders of image"):
        rank_encoders([FrozenEncoder(names["image"][0]), [FrozenEncoder(names["text"][0])] * 2], names["text"], pairs)
    store = make(names, recipe="linear").extract_features(pairs, show_progress_bar=False)
    with pytest.raises(ValueError, match="names or FrozenEncoders"):
        rank_encoders([[store, store]], names["text"], pairs)


# One store an encoder, put together


def stores_of(names, data, folder: Path | None = None, **options) -> list:
    """A store with a vision and a text encoder, and one with another vision encoder only."""
    text, found = names["text"][0], []
    for number, (name, modalities) in enumerate(zip(names["image"], (None, ["image"]))):
        model = make({"image": name, "text": text}, recipe="linear")
        path = None if folder is None else folder / str(number)
        options = {"modalities": modalities, "level": "pooled", "show_progress_bar": False, **options}
        found.append(model.extract_features(data, path, **options))
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_stores_of_one_encoder_each_are_put_side_by_side(dtype, names, pairs, images, tmp_path):
    joined = join_encoders(stores_of(names, pairs, tmp_path, dtype=dtype))
    model = make({**names, "text": names["text"][0]}, recipe="kernel")
    expected = model.extract_features(pairs, dtype="float32", show_progress_bar=False)
    assert joined.origins == expected.origins and joined.ids == expected.ids
    slack = {"float32": 1e-6, "float16": 1e-3, "int8": 2e-2}[dtype]
    for modality in ("image", "text"):
        found = joined[modality].vectors().float()
        torch.testing.assert_close(found, expected[modality].vectors(), atol=slack, rtol=slack)
    assert joined["text"].captions(np.arange(12)) == expected["text"].captions(np.arange(12))
    model.fit(joined, show_progress_bar=False)
    assert model.encode(joined["image"]).shape == model.encode(images).shape
    joined.save(tmp_path / "joined")
    assert FeatureStore.open(tmp_path / "joined").origins == joined.origins


def test_what_one_encoder_has_no_features_of_is_left_out_and_listed(names, pairs, images):
    def moody(items):
        if any(item.size == images[3].size for item in items):
            raise RuntimeError("not this one")
        return np.stack([np.asarray(item.resize((2, 2)), np.float32).reshape(-1) for item in items])

    function = FrozenEncoder(CallableEncoder(moody, "image", fingerprint="moody"))
    joined = join_encoders(stores_of({**names, "image": [names["image"][0], function]}, pairs))
    assert joined.ids == [str(place) for place in range(12) if place != 3]
    assert [entry.index for entry in joined.skipped] == [3]
    assert joined.origins["image"].pooling == "mean"
    make({"image": [names["image"][0], function], "text": names["text"][0]}).fit(joined, show_progress_bar=False)


def test_one_encoder_in_two_stores_counts_once(names, pairs):
    first, _ = stores_of(names, pairs)
    assert join_encoders([first, first]).origins == first.origins


def test_stores_that_cannot_be_put_side_by_side_are_refused(names, pairs, images):
    first, second = stores_of(names, pairs)
    tokens = make({"image": names["image"][1], "text": names["text"][1]}).extract_features(pairs, level="tokens")
    with pytest.raises(ValueError, match="extract with level='pooled'"):
        join_encoders([first, tokens])
    with pytest.raises(ValueError, match="no item id in common"):
        join_encoders([first.select([0]), second.select([1])])
    with pytest.raises(ValueError, match="no item id in common"):
        join_encoders([])
    with pytest.raises(ValueError, match="are not those of one encoder"):
        join_encoders([join_encoders([first, second]), *stores_of({**names, "image": names["image"][::-1]}, pairs)])


def test_other_texts_of_an_item_are_noticed(names, pairs, images):
    one = make({"image": names["image"][0], "text": names["text"][0]}, recipe="linear").extract_features(pairs)
    model = make({"image": names["image"][0], "text": names["text"][1]}, recipe="linear")
    for text in ("other words", ["a red apple", "another"]):
        two = model.extract_features([*pairs[:4], (images[4], text), *pairs[5:]])
        with pytest.raises(ValueError, match="item '4' has other text rows"):
            join_encoders([one, two])


def test_a_ranked_set_runs_no_encoder_that_ran_before(names, pairs, tmp_path):
    options = {"metrics": ["cka"], "permutations": 20, "resamples": 20, "show_progress_bar": False, "path": tmp_path}
    rank_encoders(names["image"], names["text"][:1], pairs, **options)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    rank_encoders([names["image"]], names["text"][:1], pairs, **options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == before


def test_towers_of_any_name_and_modality(names, pairs, images, texts):
    model = make({"photo": [FrozenEncoder(name) for name in names["image"]], "caption": names["text"]}, recipe="linear")
    data = [{"photo": image, "caption": text} for image, text in pairs]
    model.fit(data, epochs=0, show_progress_bar=False)
    assert model.encode([{"photo": images[0]}, {"caption": texts[0]}]).shape == (2, 8)
    stores = []
    for name in names["image"]:
        one = make({"photo": FrozenEncoder(name), "caption": names["text"][0]}, recipe="linear")
        stores.append(one.extract_features(data, modalities=["photo"], show_progress_bar=False))
    assert join_encoders(stores).origins["photo"] == model.origins("pooled")["photo"]

    sounds = [
        FrozenEncoder(CallableEncoder(lambda items: np.array(items), "sound", dim=3, fingerprint=f)) for f in "ab"
    ]
    model = make({"sound": sounds, "text": names["text"]}, recipe="linear")
    assert model.encode([{"sound": [1.0, 2.0, 4.0]}]).shape == (1, 8)
