"""Heads that compare with landmarks: the kernel, and ASIF's relative representation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import layer_norm, normalize

from freezealign import FreezeAlign, KernelHead, RelativeHead, RetrievalEvaluator
from freezealign.moments import Moments
from freezealign.training.correlation import correlated_directions

QUIET = {"show_progress_bar": False}


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


def cosines(vectors: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
    """Layer-normed, centred on the landmarks' mean, compared by cosine: written out."""
    center = layer_norm(landmarks, (6,)).mean(0)
    left, right = (normalize(layer_norm(x, (6,)) - center, dim=-1) for x in (vectors, landmarks))
    return left @ right.T


def embed(head, vectors: torch.Tensor) -> torch.Tensor:
    return head({"sentence_embedding": vectors})["sentence_embedding"]


def test_prepared_coordinates_have_the_kernel_as_inner_product(vectors):
    head = KernelHead(6, 4, width=0.5)
    head.set_landmarks(vectors)
    prepared = head.prepared(vectors)
    expected = torch.exp((cosines(vectors, vectors) - 1) / 0.5).double()
    torch.testing.assert_close(prepared @ prepared.T, expected, atol=1e-5, rtol=0)


def test_kernel_head_computes_the_affine_map_it_was_given(vectors):
    head = KernelHead(6, 3)
    head.set_landmarks(vectors[:12])
    prepared = head.prepared(vectors)
    weight = torch.randn(3, prepared.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bias = torch.arange(3, dtype=torch.float64)
    head.set_affine(weight, bias)
    torch.testing.assert_close(embed(head, vectors).double(), prepared @ weight.T + bias, atol=1e-3, rtol=1e-3)


def test_relative_head_keeps_the_nearest_landmarks_only(vectors):
    head = RelativeHead(6, neighbours=3, power=2)
    head.set_landmarks(vectors[:12])
    found = embed(head, vectors).detach()
    cosine = cosines(vectors, vectors[:12]).clamp(min=0)
    smallest = cosine.sort(dim=1, descending=True).values[:, 2:3]
    torch.testing.assert_close(found, (cosine * (cosine >= smallest)) ** 2, atol=1e-5, rtol=0)
    assert int((found > 0).sum(1).max()) <= 3
    assert head.get_embedding_dimension() == 12


@pytest.mark.parametrize("head", [KernelHead(6, 3), RelativeHead(6)])
def test_head_without_landmarks_says_what_to_do(head, vectors):
    with pytest.raises(ValueError, match=r"no landmarks yet.*closed-form"):
        embed(head, vectors)


def test_width_that_does_not_fit_is_named(vectors):
    with pytest.raises(ValueError, match=r"width 5 .* gives 6"):
        embed(KernelHead(5, 3, landmarks=2), vectors)


# In a model


@pytest.mark.parametrize("recipe", ["kernel", "relative"])
def test_model_is_saved_and_loaded_with_its_landmarks(
    dinov2_folder, bert_folder, pairs, images, texts, tmp_path, recipe
):
    model = FreezeAlign([dinov2_folder, bert_folder], recipe=recipe, dim=16, seed=0, device="cpu")
    model.fit(pairs, **QUIET)
    model.save_pretrained(tmp_path / "model")
    loaded = FreezeAlign.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.tower("text")[-1].landmarks == 12
    np.testing.assert_array_equal(loaded.encode(images), model.encode(images))
    np.testing.assert_array_equal(loaded.encode(texts), model.encode(texts))


@pytest.mark.parametrize("recipe", ["kernel", "relative"])
def test_training_pairs_are_found_again(dinov2_folder, bert_folder, pairs, images, texts, recipe):
    model = FreezeAlign([dinov2_folder, bert_folder], recipe=recipe, dim=16, seed=0, device="cpu")
    model.fit(pairs, **QUIET)
    scores = RetrievalEvaluator(images, texts, show_progress_bar=False)(model)
    assert scores["t2i_R@1"] > 0.6 > 3 * scores["t2i_R@1_chance"]


def test_kernel_model_is_canonical_correlation_of_kernel_coordinates(callable_model, pairs, images, texts):
    """The whole closed form of a kernel model, written out from the frozen features."""
    model = FreezeAlign(list(callable_model.encoders.values()), recipe="kernel", dim=8, seed=0, device="cpu")
    store = model.extract_features(pairs, **QUIET)
    model.fit(store, **QUIET)
    prepared = []
    for name in ("image", "text"):
        frozen = store[name].load(range(12))["sentence_embedding"]
        head = KernelHead(frozen.shape[1], 8)
        head.set_landmarks(frozen)
        prepared.append(head.prepared(frozen))
    moments = Moments(double=True)
    moments.update(prepared)
    maps = correlated_directions(moments, 7, (0.6 / 48, 0.6 / 32))
    first, second = (normalize(x @ m.weight.T + m.bias, dim=-1) for x, [m] in zip(prepared, maps))
    similarity = model.similarity(model.encode(images), model.encode(texts))
    torch.testing.assert_close(similarity.double(), first @ second.T, atol=1e-3, rtol=0)


def test_kernel_model_can_be_trained_on(dinov2_folder, bert_folder, pairs):
    model = FreezeAlign([dinov2_folder, bert_folder], recipe="kernel", dim=16, seed=0, device="cpu")
    model.fit(pairs, **QUIET)
    before = model.tower("text")[-1].points.detach().clone()
    history = model.fit(pairs, init="random", epochs=3, learning_rate=1e-3, **QUIET)
    assert history.losses[-1] < history.losses[0]
    assert not torch.equal(model.tower("text")[-1].points, before)


def test_auto_takes_a_kernel_for_few_pairs_and_keeps_what_was_asked_for(dinov2_folder, bert_folder, pairs):
    auto = FreezeAlign([dinov2_folder, bert_folder], dim=16, device="cpu")
    history = auto.fit(pairs, **QUIET)
    assert isinstance(auto.tower("image")[-1], KernelHead)
    assert "closed-form" in history.plan and not history.steps
    kept = FreezeAlign([dinov2_folder, bert_folder], dim=16, device="cpu")
    kept.fit(pairs, init="random", epochs=1, **QUIET)
    assert not isinstance(kept.tower("image")[-1], KernelHead)


def test_refused_fit_leaves_the_blocks_alone(dinov2_folder, bert_folder, images):
    model = FreezeAlign([dinov2_folder, bert_folder], dim=16, device="cpu")
    store = model.extract_features([{"image": image} for image in images], modalities=["image"], **QUIET)
    before = [str(block) for block in model.tower("image")]
    with pytest.raises(ValueError, match="also needs 'text'"):
        model.fit(store, **QUIET)
    assert [str(block) for block in model.tower("image")] == before


def test_fitting_again_keeps_the_blocks_that_were_chosen(dinov2_folder, bert_folder, pairs):
    model = FreezeAlign([dinov2_folder, bert_folder], dim=16, device="cpu")
    model.fit(pairs, **QUIET)
    head = model.tower("image")[-1]
    model.fit(pairs, **QUIET)
    assert model.tower("image")[-1] is head
