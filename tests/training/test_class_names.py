from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from freezealign import FreezeAlign, FrozenEncoder
from freezealign.encoders.timm import TimmEncoder
from freezealign.training.class_names import class_pairs


@pytest.fixture(scope="module")
def classifier() -> FrozenEncoder:
    """A tiny network that could tell ImageNet's classes apart, had it been trained."""
    torch.manual_seed(0)
    return FrozenEncoder(TimmEncoder(timm.create_model("test_efficientnet", pretrained=False), image_size=32))


def make_model(image, bert_folder) -> FreezeAlign:
    return FreezeAlign({"image": image, "text": bert_folder}, recipe="linear", dim=8, seed=0, device="cpu")


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_every_class_is_a_pair_that_mixes_with_real_ones(classifier, bert_folder, pairs, dtype):
    model = make_model(classifier, bert_folder)
    real = model.extract_features(pairs, dtype=dtype)
    classes = class_pairs(model, real)
    assert len(classes) == 1000 and classes["text"].captions([0]) == [classes.ids[0]] and "tench" in classes.ids[0]
    model.fit([real, classes], show_progress_bar=False)
    by_hand = model.encode(["a red apple"])
    model.fit(real, class_names=True, show_progress_bar=False)
    np.testing.assert_array_equal(model.encode(["a red apple"]), by_hand)
    assert model.model_card_data.training["class_names"] is True
    assert np.isfinite(model.encode(["a red apple"])).all()


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("int8", 0.02)])
def test_classes_have_the_mean_of_the_layer_normed_real_pairs(classifier, bert_folder, pairs, dtype, error):
    model = make_model(classifier, bert_folder)
    real = model.extract_features(pairs, dtype=dtype)
    found = class_pairs(model, real)["image"].load(np.arange(1000))["sentence_embedding"].float().mean(0)
    vectors = real["image"].load(np.arange(len(real)))["sentence_embedding"].float()
    expected = torch.nn.functional.layer_norm(vectors, vectors.shape[-1:]).mean(0)
    assert (found - expected).abs().max() < error


def test_an_encoder_without_such_a_classifier_is_refused(dinov2_folder, bert_folder, pairs):
    model = make_model(dinov2_folder, bert_folder)
    with pytest.raises(ValueError, match="has no classifier"):
        class_pairs(model, model.extract_features(pairs))


def test_stores_of_tokens_are_refused(classifier, bert_folder, pairs):
    model = make_model(classifier, bert_folder)
    with pytest.raises(ValueError, match="level='pooled'"):
        class_pairs(model, model.extract_features(pairs, level="tokens"))
