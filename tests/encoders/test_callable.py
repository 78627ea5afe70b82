from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from freezealign import FreezeAlign, FrozenEncoder
from freezealign.encoders.callable import CallableEncoder


def vectors(items: list[str]) -> np.ndarray:
    return np.array([[len(item), 1.0, 2.0] for item in items], dtype=np.float32)


def tokens(items: list[str]) -> list[np.ndarray]:
    return [np.array([[ord(letter), 1.0] for letter in item], dtype=np.float32) for item in items]


class Letters(nn.Module):
    """A module that embeds texts by their length."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, items: list[str]) -> torch.Tensor:
        lengths = torch.tensor([[len(item), 1.0] for item in items])
        return self.dropout(self.norm(self.linear(lengths).expand(max(2, len(items)), -1))[: len(items)])


def run(function, *items, modality: str = "text", **options) -> dict:
    encoder = FrozenEncoder(CallableEncoder(function, modality, **options))
    return encoder(encoder.preprocess(list(items)))


def encode(function, *items, **options) -> np.ndarray:
    encoder = FrozenEncoder(CallableEncoder(function, "text", **options))
    return FreezeAlign([encoder], dim=8, seed=0, device="cpu").encode(list(items))


# Vectors and tokens


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_vectors_are_the_embeddings_and_the_only_token_of_each_item(convert):
    features = run(lambda items: convert(vectors(items)), "a", "bb")
    assert features["sentence_embedding"].tolist() == [[1, 1, 2], [2, 1, 2]]
    assert features["token_embeddings"].tolist() == [[[1, 1, 2]], [[2, 1, 2]]]


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_token_lists_are_padded_and_masked(convert):
    features = run(lambda items: [convert(item) for item in tokens(items)], "a", "abc")
    assert features["token_embeddings"].shape == (2, 3, 2)
    assert features["token_embeddings"][1, :, 0].tolist() == [ord("a"), ord("b"), ord("c")]
    assert features["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_an_array_of_equally_many_tokens_an_item_is_read_as_tokens():
    features = run(lambda items: np.ones((len(items), 5, 3), dtype=np.float32), "a", "b")
    assert features["token_embeddings"].shape == (2, 5, 3) and features["attention_mask"].all()


@pytest.mark.parametrize("listed", [list, lambda array: array.tolist()], ids=["arrays", "lists of floats"])
def test_a_list_of_vectors_is_read_as_vectors(listed):
    features = run(lambda items: listed(vectors(items)), "a", "bb")
    assert features["sentence_embedding"].tolist() == [[1, 1, 2], [2, 1, 2]]


def test_a_generator_of_token_arrays_is_read():
    assert run(lambda items: (item for item in tokens(items)), "a", "bb")["token_embeddings"].shape == (2, 2, 2)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_vectors_of_any_number_type_can_be_projected(dtype):
    expected = encode(vectors, "a", "bb")
    np.testing.assert_allclose(encode(lambda items: vectors(items).astype(dtype), "a", "bb"), expected, atol=1e-6)


@pytest.mark.parametrize("function", [vectors, tokens])
def test_the_embedding_of_an_item_does_not_depend_on_its_batch(function):
    together, alone = encode(function, "a", "abcdef", "abc"), encode(function, "abc")
    np.testing.assert_allclose(together[2], alone[0], atol=1e-6)


def test_a_function_for_images_gets_rgb_images():
    modes = []

    def pixels(items: list[Image.Image]) -> np.ndarray:
        modes.extend(item.mode for item in items)
        return np.zeros((len(items), 3), dtype=np.float32)

    run(pixels, Image.new("L", (4, 4)), np.zeros((3, 3), dtype=np.uint8), modality="image")
    assert set(modes) == {"RGB"}


def test_a_function_for_another_modality_gets_the_items_as_they_are():
    heard = []

    def sounds(items: list) -> np.ndarray:
        heard.extend(items)
        return np.zeros((len(items), 3), dtype=np.float32)

    run(sounds, {"wave": 1}, 440, modality="audio", dim=3)
    assert heard == [{"wave": 1}, 440]


# Width


@pytest.mark.parametrize(("function", "width"), [(vectors, 3), (tokens, 2)])
def test_the_width_is_found_by_calling_the_function(function, width):
    assert FrozenEncoder(function, "text").get_embedding_dimension() == width


def test_a_stated_width_saves_the_call():
    calls = []
    encoder = CallableEncoder(calls.append, "text", dim=7)
    assert encoder.dim == 7 and not calls


def test_the_width_of_an_unknown_modality_must_be_stated():
    with pytest.raises(ValueError, match=r"state the width of the 'audio' encoder.*dim="):
        FrozenEncoder(vectors, "audio")


def test_a_modality_must_be_stated():
    with pytest.raises(ValueError, match="say what a function encodes"):
        FrozenEncoder(vectors)


def test_what_is_no_function_is_refused_by_type():
    with pytest.raises(TypeError, match="not int"):
        FrozenEncoder(3, "text")


# What a function may not give


def test_nan_is_refused_with_the_items_that_have_it():
    def broken(items: list[str]) -> np.ndarray:
        return np.where([[item == "bad"] for item in items], np.float32(np.nan), vectors(items))

    with pytest.raises(ValueError, match=r"items \[1\] are NaN or Inf"):
        encode(broken, "a", "bad", "b")


@pytest.mark.parametrize("function", [vectors, tokens])
@pytest.mark.parametrize("surplus", [-1, 1])
def test_another_number_of_outputs_than_of_items_is_refused_with_both(function, surplus):
    encoder = FrozenEncoder(CallableEncoder(lambda items: function((items * 2)[: len(items) + surplus]), "text", dim=2))
    with pytest.raises(ValueError, match=rf"(?s){3 + surplus}.*3|3.*{3 + surplus}"):
        encoder(encoder.preprocess(["a", "b", "c"]))


def test_another_width_than_stated_is_refused_with_both():
    with pytest.raises(ValueError, match=r"(?s)5.*3|3.*5"):
        encode(vectors, "a", dim=5)


def test_an_item_without_any_token_is_refused_rather_than_embedded_as_zeros():
    with pytest.raises(ValueError, match="token"):
        encode(lambda items: [np.ones((len(item) - 1, 3), dtype=np.float32) for item in items], "a", "bb")


@pytest.mark.parametrize("output", [None, 3.0, "text", np.float32(1)], ids=lambda output: type(output).__name__)
def test_what_is_neither_vectors_nor_tokens_is_refused_with_what_a_function_should_give(output):
    with pytest.raises((TypeError, ValueError), match="vectors"):
        FrozenEncoder(lambda items: output, "text")


# Modules


def test_wrapping_a_module_does_not_change_it():
    module = Letters()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    FrozenEncoder(module, "text")
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_module_is_frozen_and_its_dropout_stays_off():
    module = Letters()
    encoder = FrozenEncoder(module, "text").train()
    first, second = (encoder(encoder.preprocess(["a", "bb"]))["token_embeddings"] for _ in range(2))
    assert torch.equal(first, second) and not any(parameter.requires_grad for parameter in module.parameters())


def test_a_modules_parameters_are_counted():
    assert FrozenEncoder(Letters(), "text").num_parameters() == 2 * 4 + 4 + 4 + 4


def test_a_functions_parameters_are_those_stated():
    assert CallableEncoder(vectors, "text", parameters=12).num_parameters() == 12
    assert CallableEncoder(vectors, "text").num_parameters() == 0


def test_a_modules_fingerprint_changes_with_its_weights():
    first, second = Letters(), Letters()
    second.load_state_dict(first.state_dict())
    assert FrozenEncoder(first, "text").fingerprint == FrozenEncoder(second, "text").fingerprint
    with torch.no_grad():
        second.linear.weight[0, 0] += 1e-3
    assert FrozenEncoder(first, "text").fingerprint != FrozenEncoder(second, "text").fingerprint


def test_a_modules_fingerprint_changes_with_its_buffers():
    first, second = Letters(), Letters()
    second.load_state_dict(first.state_dict())
    second.norm.running_mean += 1
    assert FrozenEncoder(first, "text").fingerprint != FrozenEncoder(second, "text").fingerprint


def test_different_functions_have_different_fingerprints():
    assert FrozenEncoder(vectors, "text").fingerprint != FrozenEncoder(tokens, "text").fingerprint


@pytest.mark.parametrize("function", [vectors, functools.partial(vectors), lambda items: vectors(items)])
def test_the_fingerprint_of_any_function_is_a_sha256(function):
    assert len(bytes.fromhex(FrozenEncoder(function, "text").fingerprint)) == 32


def test_a_stated_fingerprint_is_kept():
    assert CallableEncoder(vectors, "text", fingerprint="v2").fingerprint() == "v2"
