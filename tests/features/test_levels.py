"""Pooled and token stores: a model keeps the least it needs; both give the same embeddings and the same training."""

from __future__ import annotations

import numpy as np
import pytest

from freezealign import FeatureStore, FreezeAlign, FrozenEncoder, Pooling, ProjectionHead, TokenProjector


def pooling_first(dinov2_folder: str, bert_folder: str, mode: str = "mean") -> FreezeAlign:
    """A model that pools the encoders' tokens before anything is trained."""
    towers = {}
    for name, folder in {"image": dinov2_folder, "text": bert_folder}.items():
        encoder = FrozenEncoder(folder, name)
        head = ProjectionHead(encoder.get_embedding_dimension(), 16, "linear")
        towers[name] = [encoder, Pooling(mode), head]
    return FreezeAlign(towers, device="cpu")


@pytest.fixture
def pooled(dinov2_folder, bert_folder) -> FreezeAlign:
    return pooling_first(dinov2_folder, bert_folder)


@pytest.fixture
def model(dinov2_folder, bert_folder) -> FreezeAlign:
    """A model whose projectors read tokens."""
    return FreezeAlign({"image": dinov2_folder, "text": bert_folder}, recipe="token", dim=16, device="cpu")


@pytest.fixture
def pairs(images, texts):
    """Twelve pairs with one to three captions of different lengths."""
    return [(image, texts[i : i + 1 + i % 3]) for i, image in enumerate(images)]


def extract(model: FreezeAlign, data, *args, **options) -> FeatureStore:
    return model.extract_features(data, *args, show_progress_bar=False, **options)


def test_a_model_that_pools_first_stores_vectors(pooled, pairs):
    store = extract(pooled, pairs)
    assert store.level == "pooled"
    assert set(store["image"].load([0])) == {"sentence_embedding"}
    assert store["image"].load([0, 5])["sentence_embedding"].shape == (2, 24)
    assert store["text"].lengths().tolist() == [1] * 22


def test_a_model_that_reads_tokens_stores_tokens(model, pairs):
    assert extract(model, pairs).level == "tokens"


def test_one_tower_that_reads_tokens_is_enough_for_tokens(pooled, model, pairs):
    mixed = FreezeAlign({"image": list(pooled.towers["image"]), "text": list(model.towers["text"])}, device="cpu")
    assert extract(mixed, pairs).level == "tokens"
    assert extract(mixed, [{"image": pair[0]} for pair in pairs], modalities=["image"]).level == "pooled"


@pytest.mark.parametrize("level", ["pooled", "tokens"])
@pytest.mark.parametrize("folder", [None, "store"])
def test_embeddings_are_those_of_the_items(pooled, images, pairs, tmp_path, level, folder):
    store = extract(pooled, pairs, folder and tmp_path / folder, level=level, dtype="float32", batch_size=5)
    assert store.level == level
    captions = [text for _, texts in pairs for text in texts]
    np.testing.assert_allclose(pooled.encode(store["image"]), pooled.encode(images), atol=1e-5)
    np.testing.assert_allclose(pooled.encode(store["text"]), pooled.encode(captions), atol=1e-5)


@pytest.mark.parametrize("mode", ["mean", "max", "patch_mean"])
def test_every_pooling_is_that_of_the_model(dinov2_folder, bert_folder, images, pairs, mode):
    model = pooling_first(dinov2_folder, bert_folder, mode)
    np.testing.assert_allclose(model.encode(extract(model, pairs)["image"]), model.encode(images), atol=1e-5)


def test_training_on_vectors_is_training_on_tokens(dinov2_folder, bert_folder, pairs):
    losses = {}
    for level in ("pooled", "tokens"):
        model = pooling_first(dinov2_folder, bert_folder)
        for name, tower in model.towers.items():
            weights = np.random.default_rng(len(name))
            for parameter in (p for block in tower.blocks for p in block.parameters()):
                parameter.data.copy_(parameter.new_tensor(weights.normal(0, 0.1, parameter.shape)))
        store = extract(model, pairs, level=level)
        losses[level] = model.fit(store, schedule="paper", epochs=5, batch_size=6, show_progress_bar=False).losses
    assert len(losses["pooled"]) == 10
    np.testing.assert_allclose(losses["pooled"], losses["tokens"], atol=1e-4)


def test_fit_extracts_the_least_level_by_itself(pooled, pairs):
    losses = pooled.fit(pairs, schedule="paper", epochs=1, batch_size=6, show_progress_bar=False).losses
    assert np.isfinite(losses).all()


# What does not fit


def test_model_that_reads_tokens_refuses_vectors(pooled, model, pairs):
    store = extract(pooled, pairs)
    with pytest.raises(ValueError, match=r"image projectors.*read tokens.*level='tokens'"):
        model.fit(store, epochs=1, show_progress_bar=False)
    with pytest.raises(ValueError, match=r"level=.tokens."):
        model.encode(store["text"])


def test_model_that_reads_tokens_cannot_store_vectors(model, pairs, tmp_path):
    with pytest.raises(ValueError, match="level='tokens'"):
        extract(model, pairs, tmp_path / "store", level="pooled")
    assert not (tmp_path / "store").exists()


def test_vectors_of_another_pooling_are_refused_naming_both(pooled, dinov2_folder, bert_folder, pairs):
    other = pooling_first(dinov2_folder, bert_folder, "max")
    store = extract(pooled, pairs)
    for use in (lambda: other.encode(store["image"]), lambda: other.fit(store, epochs=1, show_progress_bar=False)):
        with pytest.raises(ValueError, match=r"their pooling is .*mean; the model's is .*max"):
            use()


def test_tokens_serve_every_pooling(dinov2_folder, bert_folder, images, pairs, model):
    store = extract(model, pairs)
    for mode in ("mean", "max"):
        other = pooling_first(dinov2_folder, bert_folder, mode)
        np.testing.assert_allclose(other.encode(store["image"]), other.encode(images), atol=1e-5)


def test_tokens_of_vectors_are_refused(pooled, pairs):
    with pytest.raises(ValueError, match="tokens"):
        pooled.encode_tokens(extract(pooled, pairs)["image"])


def test_unknown_level_is_refused(pooled, pairs):
    with pytest.raises(ValueError, match=r"unknown level 'everything'.*tokens.*pooled"):
        extract(pooled, pairs, level="everything")


# Through disk


def test_vectors_outlive_saving_selecting_and_reading_into_memory(pooled, images, pairs, tmp_path):
    store = extract(pooled, pairs, tmp_path / "store", dtype="float32", shard_size=5)
    store.select([7, 2]).save(tmp_path / "copy")
    expected = pooled.encode([images[7], images[2]])
    for other in (FeatureStore.open(tmp_path / "copy"), store.select([7, 2]), store.resident(np.array([7, 2]))):
        assert other.level == "pooled"
        np.testing.assert_allclose(pooled.encode(other["image"]), expected, atol=1e-5)
        assert other["text"].captions([0]) == [pairs[7][1][0]]


def test_level_is_shown(pooled, pairs):
    assert "12 items, pooled, image" in repr(extract(pooled, pairs))
    assert "12 items, tokens, image" in repr(extract(pooled, pairs, level="tokens"))


def test_projector_before_the_pooling_needs_tokens(dinov2_folder, pairs):
    encoder = FrozenEncoder(dinov2_folder, "image")
    model = FreezeAlign({"image": [encoder, TokenProjector(24, 16), Pooling("mean")]}, device="cpu")
    assert extract(model, [{"image": image} for image, _ in pairs]).level == "tokens"
