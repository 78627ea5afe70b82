"""Features that nothing can be learned from, or that are damaged: an error that says which, never odd weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from runs import QUIET, letters, make_pairs, trained, vectors

from freezealign import FeatureStore, FreezeAlign, FrozenEncoder, Pooling, TokenProjector
from freezealign.encoders.callable import CallableEncoder
from freezealign.space.recipes import RECIPES

CLOSED = {"init": "closed-form", "epochs": 0, **QUIET}
NOT_FINITE = "the vector features of pair 7 hold NaN or infinity"
ALIKE = "features of all pairs are alike"


def make_model(recipe: str, width: int = 16, dim: int = 8) -> FreezeAlign:
    first = FrozenEncoder(CallableEncoder(lambda items: vectors(items)[:, :width], "vector", width))
    second = FrozenEncoder(CallableEncoder(letters, "text", 16), "text")
    return FreezeAlign([first, second], recipe=recipe, dim=dim, seed=0, device="cpu")


def spoil(store: FeatureStore, value: float, rows=slice(None), columns=slice(None)) -> FeatureStore:
    """Write ``value`` into the features of the vectors."""
    for key, column in store.columns.items():
        if (key.startswith("vector/") and key.endswith("embeddings")) or key == "vector/sentence_embedding":
            column.parts[0][rows, columns] = value
    return store


ROWS = [7, 20]
CASES = {
    "NaN row": (lambda store: spoil(store, np.nan, ROWS, 3), NOT_FINITE),
    "inf row": (lambda store: spoil(store, np.inf, ROWS, 3), NOT_FINITE),
    "-inf row": (lambda store: spoil(store, -np.inf, ROWS), NOT_FINITE),
    "zero rows": (lambda store: spoil(store, 0, ROWS), None),
    "zero column": (lambda store: spoil(store, 0, columns=3), None),
    "constant column": (lambda store: spoil(store, 100, columns=3), None),
    "all zero": (lambda store: spoil(store, 0), f"vector {ALIKE}"),
    "all equal": (lambda store: spoil(store, np.arange(16)), f"vector {ALIKE}"),
    "identical pairs": (lambda store: store.select([4] * 20), f"vector {ALIKE}"),
    "one pair": (lambda store: store.select([4]), "at least 2 pairs"),
    "two pairs": (lambda store: store.select([4, 5]), None),
    "two pairs twice": (lambda store: store.select([4, 5, 4, 5]), None),
}


def check_vectors(model: FreezeAlign, store: FeatureStore) -> None:
    """Every item has a vector of length 1."""
    inputs, _ = store.load(np.arange(len(store)), np.zeros(len(store)))
    with torch.no_grad():
        for found in model(inputs).values():
            torch.testing.assert_close(found.norm(dim=1), torch.ones(len(store)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_closed_form_of_odd_features(recipe, case):
    change, message = CASES[case]
    model = make_model(recipe)
    store, before = change(model.extract_features(make_pairs(), **QUIET)), model.weights_digest()
    if message is None:
        model.fit(store, **CLOSED)
        check_vectors(model, store)
        return
    with pytest.raises(ValueError, match=message):
        model.fit(store, **CLOSED)
    assert model.weights_digest() == before


@pytest.mark.parametrize("recipe", RECIPES)
def test_encoder_one_wide_has_nothing_after_a_layer_norm(recipe):
    model = make_model(recipe, width=1)
    store = model.extract_features(make_pairs(), **QUIET)
    if recipe == "linear":
        model.fit(store, **CLOSED)
        check_vectors(model, store)
        return
    with pytest.raises(ValueError, match=f"vector {ALIKE}"):
        model.fit(store, **CLOSED)


@pytest.mark.parametrize("recipe", ["auto", *RECIPES])
def test_shared_space_one_wide_has_no_closed_form(recipe):
    model = make_model(recipe, dim=1)
    if recipe == "relative":
        model.fit(make_pairs(), **CLOSED)
        return
    with pytest.raises(ValueError, match="shared space 1 wide"):
        model.fit(make_pairs(), **CLOSED)
    if recipe != "kernel":
        assert "shared space 1 wide" in model.fit(make_pairs(), epochs=1, batch_size=6, **QUIET).plan


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe not in ("kernel", "relative")])
def test_training_names_the_pair_that_is_not_finite(recipe, value):
    model = make_model(recipe)
    store = spoil(model.extract_features(make_pairs(captions=2), **QUIET), value, [7], 3)
    with pytest.raises(FloatingPointError, match=f"{NOT_FINITE}; extract"):
        model.fit(store, schedule="paper", epochs=1, batch_size=6, captions=2, **QUIET)
    assert all(value.isfinite().all() for value in trained(model).values())


def test_pair_is_counted_through_all_stores():
    model = make_model("pooled")
    stores = [model.extract_features(make_pairs(10, seed=seed), **QUIET) for seed in range(2)]
    spoil(stores[1], np.nan, [7])
    with pytest.raises(ValueError, match="vector features of pair 17 hold NaN"):
        model.fit(stores, **CLOSED)


def test_projector_of_a_cls_vector_that_is_not_pooled_gets_no_zeros(dinov2_folder, bert_folder, pairs, images):
    """The closed form goes where the pooling looks."""
    image = [FrozenEncoder(dinov2_folder), TokenProjector(24, 16, cls=True), Pooling("mean")]
    model = FreezeAlign({"image": image, "text": bert_folder}, recipe="token", dim=16, device="cpu")
    model.fit(pairs, **CLOSED)
    np.testing.assert_allclose(np.linalg.norm(model.encode(images), axis=1), 1, atol=1e-5)
