"""What embeddings lose when they are stored in fewer bits: bounds that hold for every row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from freezealign import FeatureStore, FreezeAlign, FrozenEncoder
from freezealign.encoders.callable import CallableEncoder
from freezealign.features.shard import quantized

WIDTH = 6
SMALLEST = float(np.finfo(np.float16).smallest_normal)


def rows(limit: float) -> st.SearchStrategy[np.ndarray]:
    values = st.floats(-limit, limit, width=32, allow_subnormal=False)
    return arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(WIDTH)), elements=values)


def audio_model() -> FreezeAlign:
    """A model that takes vectors as they are."""
    return FreezeAlign([FrozenEncoder(CallableEncoder(np.stack, "audio", WIDTH))], dim=4, seed=0, device="cpu")


def store_of(vectors, path=None, **options) -> FeatureStore:
    data = [{"audio": vector} for vector in vectors]
    return audio_model().extract_features(data, path, show_progress_bar=False, **options)


def values_of(store: FeatureStore) -> np.ndarray:
    features = store["audio"].load(np.arange(len(store)))
    return features["token_embeddings"].float().numpy().reshape(-1, WIDTH)


@given(rows(60_000))
def test_float16_loses_a_2048th_at_most(values):
    stored, scale = quantized(values, "float16")
    assert stored.dtype == np.float16
    assert scale is None
    bound = np.maximum(np.abs(values) * 2**-11, SMALLEST * 2**-11)
    assert (np.abs(stored.astype(np.float64) - values) <= bound).all()


@given(rows(2.0**127))
def test_float32_loses_nothing(values):
    stored, scale = quantized(values, "float32")
    assert scale is None
    np.testing.assert_array_equal(stored, values)


@given(rows(2.0**126))
def test_int8_loses_half_a_step_at_most(values):
    stored, scale = quantized(values, "int8")
    assert stored.dtype == np.int8
    assert (np.abs(stored.astype(int)) <= 127).all()
    error = np.abs(stored * scale[:, None].astype(np.float64) - values)
    assert (error <= scale[:, None] * 0.5 * (1 + 1e-4)).all()
    np.testing.assert_allclose(scale, np.abs(values).max(1) / 127, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_zeros_stay_zeros(dtype):
    values = np.array([[0] * WIDTH, [1, 2, 3, 4, 5, -6]], np.float32)
    loaded = values_of(store_of(values, dtype=dtype))
    np.testing.assert_array_equal(loaded[0], np.zeros(WIDTH))
    np.testing.assert_allclose(loaded[1], values[1], atol=6 / 254 * 1.001)


@given(rows(100))
def test_each_row_has_a_scale_of_its_own(values):
    together, _ = quantized(values, "int8")
    alone = np.concatenate([quantized(row[None], "int8")[0] for row in values])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("largest", [65505.0, 1e6, -7e4])
def test_what_is_beyond_float16_says_what_to_do(largest, tmp_path):
    values = np.ones((3, WIDTH), np.float32)
    values[1, 2] = largest
    store = store_of(values, tmp_path / "store")
    np.testing.assert_array_equal(values_of(store), values[[0, 2]])
    (skipped,) = store.skipped
    assert skipped.index == 1 and "beyond float16 (dtype='float32' keeps them)" in skipped.reason
    np.testing.assert_array_equal(values_of(store_of(values, tmp_path / "wide", dtype="float32")), values)


def test_the_largest_float16_is_kept():
    values = np.full((1, WIDTH), 65504, np.float32)
    np.testing.assert_array_equal(values_of(store_of(values, dtype="float16")), values)


def test_unknown_dtype_is_an_error_that_lists_the_known(tmp_path):
    with pytest.raises(ValueError, match=r"unknown dtype 'float8'.*'float16', 'float32', 'int8'"):
        store_of(np.ones((2, WIDTH)), tmp_path / "store", dtype="float8")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("path", "dtype"), [("store", np.float16), (None, np.float32)])
def test_by_default_half_the_bytes_on_disk_and_all_of_them_in_memory(tmp_path, path, dtype):
    store = store_of(np.ones((2, WIDTH), np.float32), path and tmp_path / path)
    assert store["audio"].columns["token_embeddings"].dtype == dtype


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_dtype_outlives_saving_selecting_and_reading_into_memory(tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=(20, WIDTH)).astype(np.float32) * np.arange(20)[:, None]
    store = store_of(values, tmp_path / "store", dtype=dtype, shard_size=6)
    expected = values_of(store)
    np.testing.assert_allclose(expected, values, atol=0 if dtype == "float32" else 0.3)
    order = np.array([19, 3, 3, 0])
    store.select(order).save(tmp_path / "copy")
    for other in (FeatureStore.open(tmp_path / "copy"), store.select(order), store.resident(order)):
        np.testing.assert_array_equal(values_of(other), expected[order])
        assert other["audio"].columns["token_embeddings"].dtype == dtype


def test_int8_embeds_as_the_model_does(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, WIDTH)).astype(np.float32)
    model = audio_model()
    store = store_of(values, tmp_path / "store", dtype="int8")
    expected = model.encode(list(values), modality="audio")
    np.testing.assert_allclose(model.encode(store["audio"]), expected, atol=0.03)
