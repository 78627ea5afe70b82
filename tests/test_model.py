"""What a model does with inputs: encode in every form, compare, and change its parts."""

from __future__ import annotations

import threading
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from freezealign import FreezeAlign, FrozenEncoder, Pooling, TokenProjector
from freezealign.encoders.callable import CallableEncoder

SLACK = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def shared(dinov2_folder, bert_folder) -> FreezeAlign:
    """The paper's wiring; tests of this file that use it leave it as it is."""
    return FreezeAlign({"image": dinov2_folder, "text": bert_folder}, dim=16, seed=0, device="cpu")


@pytest.fixture(scope="module")
def mixed() -> list:
    """Images and texts in turns, of many sizes and lengths."""
    rng = np.random.default_rng(1)
    pictures = [Image.fromarray(rng.integers(0, 256, (*rng.integers(28, 50, 2), 3), dtype=np.uint8)) for _ in range(6)]
    words = [" ".join(["red", *map(str, range(n))]) for n in (0, 9, 3, 5, 1, 7)]
    return [item for pair in zip(pictures, words) for item in pair]


@pytest.fixture(scope="module")
def alone(shared, mixed) -> np.ndarray:
    """Each item embedded by itself, unbatched and unpadded."""
    return np.stack([shared.encode(item) for item in mixed])


def vectors(width: int, modality: str, dim: int | None = None) -> FrozenEncoder:
    """A function as an encoder: a vector that depends on the item."""

    def vector(item):
        data = item.encode() if isinstance(item, str) else np.asarray(item).tobytes()
        return np.random.default_rng(zlib.crc32(data)).normal(size=width).astype(np.float32)

    def function(items):
        return np.stack([vector(item) for item in items])

    return FrozenEncoder(CallableEncoder(function, modality, dim or width))


# Embeddings do not depend on how they were computed


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(12)), batch_size=st.integers(1, 13))
def test_order_and_batch_size_do_not_change_embeddings(shared, mixed, alone, order, batch_size):
    together = shared.encode([mixed[i] for i in order], batch_size=batch_size)
    np.testing.assert_allclose(together, alone[list(order)], **SLACK)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_padding_does_not_change_text_embeddings(shared, lengths):
    texts = [" ".join(["blue", *map(str, range(n))]) for n in lengths]
    expected = np.stack([shared.encode_text(text) for text in texts])
    np.testing.assert_allclose(shared.encode_text(texts), expected, **SLACK)


def test_items_read_ahead_in_another_thread_stay_in_order(shared, mixed, alone):
    pictures = [item for item in mixed if not isinstance(item, str)]
    readers = set()

    def reader(picture):
        def read():
            readers.add(threading.current_thread())
            return picture

        return read

    together = shared.encode_image([reader(picture) for picture in pictures], batch_size=1)
    np.testing.assert_allclose(together, alone[::2], **SLACK)
    assert threading.main_thread() not in readers


def test_mixed_lists_come_back_in_order(shared, mixed):
    together = shared.encode(mixed)
    np.testing.assert_allclose(together[::2], shared.encode_image(mixed[::2]), **SLACK)
    np.testing.assert_allclose(together[1::2], shared.encode_text(mixed[1::2]), **SLACK)


def test_training_mode_does_not_change_embeddings(model, mixed):
    expected = model.encode(mixed)
    model.train()
    np.testing.assert_array_equal(model.encode(mixed), expected)
    assert model.training


def test_different_items_have_different_embeddings(alone):
    assert len(np.unique(alone.round(4), axis=0)) == len(alone)


def test_every_form_of_an_image_gives_one_embedding(shared, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    path = tmp_path / "picture.png"
    picture.save(path)
    array = np.asarray(picture)
    forms = [picture, path, str(path), path.read_bytes(), array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    forms += [{"image": picture}, lambda: picture, {"path": str(path), "bytes": None}]
    embeddings = shared.encode(forms)
    np.testing.assert_allclose(embeddings, np.broadcast_to(embeddings[0], embeddings.shape), **SLACK)


# Shapes and types of results


def test_single_text_is_one_vector(shared):
    assert shared.encode("a red apple").shape == (16,)


def test_single_image_is_one_vector(shared, mixed):
    assert shared.encode(mixed[0]).shape == (16,)


def test_list_of_one_stays_a_list(shared):
    assert shared.encode(["a red apple"]).shape == (1, 16)


def test_array_batch_of_images_is_several_items(shared):
    assert shared.encode(np.zeros((3, 28, 28, 3), np.uint8)).shape == (3, 16)


@pytest.mark.parametrize("method", ["encode", "encode_image", "encode_text"])
def test_empty_list_has_no_rows(shared, method):
    assert getattr(shared, method)([]).shape == (0, 16)


def test_empty_list_is_cut_as_others_are(shared):
    assert shared.encode([], truncate_dim=5).shape == (0, 5)


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_empty_list_has_no_rows_in_any_precision(shared, precision):
    assert len(shared.encode([], precision=precision)) == 0


def test_embeddings_have_unit_length(shared, mixed):
    np.testing.assert_allclose(np.linalg.norm(shared.encode(mixed), axis=1), 1, atol=1e-6)


def test_normalising_can_be_left_out(shared, mixed):
    raw = shared.encode(mixed, normalize_embeddings=False)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert not np.allclose(lengths, 1, atol=0.01)
    np.testing.assert_allclose(raw / lengths, shared.encode(mixed), **SLACK)


def test_truncated_embeddings_are_the_leading_dimensions_at_unit_length(shared, mixed):
    leading = shared.encode(mixed)[:, :6]
    expected = leading / np.linalg.norm(leading, axis=1, keepdims=True)
    np.testing.assert_allclose(shared.encode(mixed, truncate_dim=6), expected, **SLACK)


def test_truncating_beyond_the_width_changes_nothing(shared, mixed):
    np.testing.assert_array_equal(shared.encode(mixed, truncate_dim=99), shared.encode(mixed))


def test_tensor_on_request(shared, mixed, alone):
    embeddings = shared.encode(mixed, convert_to_tensor=True)
    assert isinstance(embeddings, torch.Tensor)
    assert embeddings.device == shared.device
    np.testing.assert_allclose(embeddings.numpy(), alone, **SLACK)


def test_list_of_tensors_on_request(shared, mixed):
    embeddings = shared.encode(mixed, convert_to_numpy=False)
    assert isinstance(embeddings, list)
    assert {tuple(vector.shape) for vector in embeddings} == {(16,)}


def test_embeddings_carry_no_gradient(shared, mixed):
    assert not shared.encode(mixed, convert_to_tensor=True).requires_grad


@pytest.mark.parametrize(
    ("precision", "dtype", "width"),
    [
        ("float32", "float32", 16),
        ("int8", "int8", 16),
        ("uint8", "uint8", 16),
        ("binary", "int8", 2),
        ("ubinary", "uint8", 2),
    ],
)
def test_precisions_have_sentence_transformers_types_and_widths(shared, mixed, precision, dtype, width):
    embeddings = shared.encode(mixed, precision=precision)
    assert (embeddings.dtype, embeddings.shape) == (np.dtype(dtype), (12, width))


def test_binary_embeddings_are_the_signs(shared, mixed, alone):
    bits = np.unpackbits(shared.encode(mixed, precision="ubinary"), axis=1)
    np.testing.assert_array_equal(bits, alone > 0)


def test_unknown_precision_is_refused(shared):
    with pytest.raises(ValueError, match="int4"):
        shared.encode(["a"], precision="int4")


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
def test_queries_and_documents_are_embedded_alike(shared, mixed, alone, method):
    np.testing.assert_allclose(getattr(shared, method)(mixed), alone, **SLACK)


def test_prompt_is_put_in_front_of_texts_only(shared, mixed):
    prompted = shared.encode(mixed, prompt="a green ")
    np.testing.assert_allclose(prompted[::2], shared.encode(mixed[::2]), **SLACK)
    np.testing.assert_allclose(prompted[1::2], shared.encode([f"a green {text}" for text in mixed[1::2]]), **SLACK)


def test_named_prompts_do_not_exist(shared):
    with pytest.raises(ValueError, match="no prompt named 'query'"):
        shared.encode("a", prompt_name="query")


def test_batch_size_below_one_is_refused(shared):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        shared.encode(["a"], batch_size=0)


def test_frozen_features_are_embedded_as_their_items(shared, mixed, alone):
    store = shared.extract_features(list(zip(mixed[::2], mixed[1::2])), show_progress_bar=False)
    np.testing.assert_allclose(shared.encode(store["image"]), alone[::2], **SLACK)
    np.testing.assert_allclose(shared.encode_text(store["text"]), alone[1::2], **SLACK)


def test_frozen_features_of_one_modality_are_refused_as_another(shared, mixed):
    store = shared.extract_features(list(zip(mixed[::2], mixed[1::2])), show_progress_bar=False)
    with pytest.raises(ValueError, match="image"):
        shared.encode_text(store["image"])


def test_frozen_features_of_another_encoder_are_refused(shared, mixed):
    other = FreezeAlign([vectors(4, "image"), vectors(4, "text")], dim=8, device="cpu")
    store = other.extract_features([(mixed[0], "a")], show_progress_bar=False)
    with pytest.raises(ValueError, match="made by another encoder"):
        shared.encode(store["text"])


# Tokens


def test_image_tokens_have_their_grid(shared, mixed):
    tokens = shared.encode_tokens(mixed[::2])
    assert {(row.embeddings.shape, row.grid) for row in tokens} == {((16, 16), (4, 4))}


def test_text_tokens_have_no_grid_and_no_padding(shared):
    tokens = shared.encode_tokens(["a red apple", "a"])
    assert [(row.embeddings.shape, row.grid) for row in tokens] == [((5, 16), None), ((3, 16), None)]


def test_image_tokens_are_patches_through_the_local_projector(shared, mixed):
    encoder, projector = shared.tower("image").encoder, shared.tower("image").blocks[0]
    patches = encoder(encoder.preprocess([mixed[0]]))["token_embeddings"][0]
    expected = torch.nn.functional.normalize(projector.tokens(patches), dim=-1).detach().numpy()
    np.testing.assert_allclose(shared.encode_tokens(mixed[0]).embeddings, expected, **SLACK)


def test_text_tokens_go_through_projector_and_head_each_alone(shared):
    encoder, (projector, _, head) = shared.tower("text").encoder, shared.tower("text").blocks
    frozen = encoder(encoder.preprocess(["a red apple"]))["token_embeddings"][0]
    each = [head.projection(projector.tokens(token[None]))[0] for token in frozen]
    expected = torch.nn.functional.normalize(torch.stack(each), dim=-1).detach().numpy()
    np.testing.assert_allclose(shared.encode_tokens("a red apple").embeddings, expected, **SLACK)


def test_patches_and_their_vector_agree(shared, mixed):
    """The image vector is the mean of the raw patch embeddings plus the projected CLS."""
    encoder, projector = shared.tower("image").encoder, shared.tower("image").blocks[0]
    cls = projector.cls_token(encoder(encoder.preprocess([mixed[0]]))["cls_token_embeddings"])[0].detach().numpy()
    patches = shared.encode_tokens(mixed[0], normalize_embeddings=False).embeddings
    vector = shared.encode(mixed[0], normalize_embeddings=False)
    np.testing.assert_allclose(patches.mean(0) + cls, vector, **SLACK)


def test_tokens_of_a_mixed_list_come_back_in_order(shared, mixed):
    together = shared.encode_tokens(mixed, batch_size=5)
    for item, row in zip(mixed, together):
        by_itself = shared.encode_tokens(item)
        assert row.grid == by_itself.grid
        np.testing.assert_allclose(row.embeddings, by_itself.embeddings, **SLACK)


def test_tokens_have_unit_length(shared, mixed):
    for row in shared.encode_tokens(mixed[:2]):
        np.testing.assert_allclose(np.linalg.norm(row.embeddings, axis=1), 1, atol=1e-6)


def test_tokens_as_tensors_on_request(shared):
    assert isinstance(shared.encode_tokens("a", convert_to_tensor=True).embeddings, torch.Tensor)


def test_tokens_of_nothing_are_nothing(shared):
    assert shared.encode_tokens([]) == []


# Comparing


def test_similarity_is_the_cosine_of_every_pair():
    first, second = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[0.0, 2.0], [5.0, 0.0], [-1.0, 0.0]])
    expected = torch.tensor([[0.8, 0.6, -0.6], [0.0, 1.0, -1.0]])
    torch.testing.assert_close(FreezeAlign.similarity(first, second), expected)


def test_similarity_of_single_vectors_is_a_matrix_of_one():
    assert FreezeAlign.similarity(np.array([3.0, 4.0]), np.array([4.0, 3.0])).tolist() == [[pytest.approx(0.96)]]


def test_pairwise_similarity_is_the_diagonal(shared, mixed):
    first, second = shared.encode(mixed[::2]), shared.encode(mixed[1::2])
    expected = shared.similarity(first, second).diagonal()
    torch.testing.assert_close(shared.similarity_pairwise(first, second), expected)


# Errors say which item is wrong


BAD = {
    "none": (None, "None"),
    "number": (3.5, "3.5"),
    "empty text": ("   ", "empty"),
    "missing image": ({"image": "no/such/file.png"}, "no/such/file.png"),
    "not an image": (b"these bytes are no image", "not an image"),
    "array of another shape": (np.zeros((4, 4, 7), np.uint8), r"\(4, 4, 7\)"),
    "normalised floats": (np.full((4, 4, 3), -1.5), "-1.5"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_item_is_named_with_its_position(shared, kind):
    item, words = BAD[kind]
    with pytest.raises(ValueError, match=rf"(?s)item 4.*{words}"):
        shared.encode(["a", "b", "c", "d", item, "e"])


@pytest.mark.parametrize("kind", BAD)
def test_bad_item_of_a_mixed_list_is_named_with_its_position_in_the_whole_list(shared, mixed, kind):
    item, words = BAD[kind]
    with pytest.raises(ValueError, match=rf"(?s)item 3.*{words}"):
        shared.encode([mixed[0], "b", mixed[2], item, "e"])


def test_bad_single_item_is_an_error(shared):
    with pytest.raises(ValueError, match="None"):
        shared.encode(None)


def test_missing_path_is_never_a_text_where_an_image_is_asked_for(shared):
    with pytest.raises(ValueError, match=r"item 1.*no such image file"):
        shared.encode_image([Image.new("RGB", (28, 28)), "photo.jpg"])


def test_missing_path_warns_where_anything_is_taken(shared):
    with pytest.warns(UserWarning, match=r"photo\.jpg.*looks like an image path"):
        shared.encode(["photo.jpg"])


def test_plain_texts_do_not_warn(shared):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared.encode(["a red apple", "see photo.jpg for a dog"])


def test_text_where_an_image_is_asked_for_is_an_error(shared, mixed):
    with pytest.raises(ValueError, match=r"item 1"):
        shared.encode_image([mixed[0], "a red apple"])


def test_image_where_a_text_is_asked_for_is_an_error(shared, mixed):
    with pytest.raises(ValueError, match=r"item 1.*expected a text"):
        shared.encode_text(["a", mixed[0]])


def test_truncated_image_is_an_error(shared, tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"item 1.*cut\.png"):
        shared.encode_image([Image.new("RGB", (28, 28)), path])


def with_nan(items):
    rows = np.ones((len(items), 4), np.float32)
    rows[[i for i, item in enumerate(items) if "bad" in item]] = np.nan
    return rows


def test_non_finite_features_are_named_with_their_positions():
    model = FreezeAlign([FrozenEncoder(with_nan, "text")], dim=4, device="cpu")
    with pytest.raises(ValueError, match=r"\[1, 3\].*NaN"):
        model.encode(["good", "bad", "good", "very bad indeed"])


def test_non_finite_tokens_are_named_with_the_position_of_their_item():
    encoder = FrozenEncoder(lambda items: [row[None].repeat(5, 0) for row in with_nan(items)], "text")
    model = FreezeAlign([encoder], dim=4, device="cpu")
    with pytest.raises(ValueError, match=r"\[2\].*NaN"):
        model.encode_tokens(["good", "good", "bad", "good"])


def test_text_for_a_model_without_a_text_tower(dinov2_folder, mixed):
    model = FreezeAlign([dinov2_folder], dim=8, device="cpu")
    with pytest.raises(ValueError, match=r"(?s)item 1.*a red apple.*only \['image'\]"):
        model.encode([mixed[0], "a red apple"])


def test_stated_modality_without_a_tower(callable_model):
    with pytest.raises(ValueError, match=r"no 'audio' tower; it has \['image', 'text'\]"):
        callable_model.encode(["a"], modality="audio")


def test_dict_that_names_no_tower(shared):
    with pytest.raises(ValueError, match="item 0"):
        shared.encode([{"audio": "a.wav"}])


# Towers of other kinds


@pytest.fixture
def named() -> FreezeAlign:
    """Towers with names of the user's own, built of blocks by hand."""
    photo = [vectors(6, "image"), TokenProjector(6, 8, kind="linear"), Pooling("mean")]
    caption = [vectors(5, "text"), TokenProjector(5, 8, kind="mlp"), Pooling("max")]
    return FreezeAlign({"photo": photo, "caption": caption}, device="cpu")


def test_towers_may_have_any_names(named, mixed):
    assert named.modalities == ["photo", "caption"]
    together = named.encode(mixed)
    np.testing.assert_allclose(together[::2], named.encode(mixed[::2], modality="photo"), **SLACK)
    np.testing.assert_allclose(together[1::2], named.encode(mixed[1::2], modality="caption"), **SLACK)


def test_items_may_name_their_tower(named, mixed):
    items = [{"photo": mixed[0]}, {"caption": mixed[1]}]
    np.testing.assert_allclose(named.encode(items), named.encode(mixed[:2]), **SLACK)


def test_third_modality_is_encoded_by_a_function(dinov2_folder, bert_folder, mixed):
    audio = vectors(7, "audio", dim=7)
    model = FreezeAlign([dinov2_folder, bert_folder, audio], dim=8, device="cpu")
    clip = np.arange(9, dtype=np.float32)
    embeddings = model.encode([mixed[0], {"audio": clip}, "a"])
    assert embeddings.shape == (3, 8)
    np.testing.assert_allclose(embeddings[1], model.encode([clip], modality="audio")[0], **SLACK)


def test_two_towers_of_one_kind_need_a_stated_modality(mixed):
    model = FreezeAlign({"left": vectors(4, "image"), "right": vectors(4, "image")}, dim=8, seed=0, device="cpu")
    with pytest.raises(ValueError, match=r"several image towers, \['left', 'right'\]; pass modality="):
        model.encode([mixed[0]])
    left, right = (model.encode([mixed[0]], modality=name) for name in ("left", "right"))
    assert not np.allclose(left, right)


def test_two_encoders_of_one_modality_are_refused(bert_folder, sbert_folder):
    with pytest.raises(ValueError, match=r"(?s)two encoders have one modality.*\(text\).*\(text\)"):
        FreezeAlign([bert_folder, sbert_folder], device="cpu")


def test_towers_of_differing_widths_are_refused():
    towers = {
        "image": [vectors(4, "image"), TokenProjector(4, 8), Pooling("mean")],
        "text": [vectors(4, "text"), TokenProjector(4, 9), Pooling("mean")],
    }
    with pytest.raises(ValueError, match=r"one width.*'image': 8.*'text': 9"):
        FreezeAlign(towers, device="cpu")


def test_a_tower_starts_with_an_encoder():
    with pytest.raises(TypeError, match="starts with a FrozenEncoder, not with TokenProjector"):
        FreezeAlign({"image": [TokenProjector(4, 8)]}, device="cpu")


def test_a_model_needs_a_tower():
    with pytest.raises(ValueError, match="no towers"):
        FreezeAlign([], device="cpu")


def test_a_lone_name_is_refused(dinov2_folder):
    with pytest.raises(ValueError, match="list of encoders"):
        FreezeAlign(dinov2_folder, device="cpu")


def test_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'magic'.*'token'"):
        FreezeAlign([vectors(4, "text")], recipe="magic", device="cpu")


def test_tower_without_a_pooling_says_what_to_do():
    model = FreezeAlign({"text": [vectors(4, "text"), TokenProjector(4, 8)]}, device="cpu")
    with pytest.raises(ValueError, match="add a Pooling"):
        model.encode(["a"])


# Changing encoders


def test_encoder_of_the_same_width_keeps_the_blocks(callable_model):
    blocks = callable_model.tower("text").blocks
    callable_model.swap_encoder("text", vectors(32, "text"))
    assert all(new is old for new, old in zip(callable_model.tower("text").blocks, blocks, strict=True))


def test_swapped_encoder_is_the_one_that_encodes(callable_model):
    other = vectors(32, "text")
    callable_model.swap_encoder("text", other)
    projector, _, head = callable_model.tower("text").blocks
    frozen = other(other.preprocess(["a red apple"]))["token_embeddings"][0]
    expected = torch.nn.functional.normalize(head.projection(projector.tokens(frozen)), dim=-1)[0].detach().numpy()
    np.testing.assert_allclose(callable_model.encode("a red apple"), expected, **SLACK)


def test_swapping_one_tower_leaves_the_other_alone(callable_model, images):
    before = callable_model.encode(images)
    callable_model.swap_encoder("text", vectors(32, "text"))
    np.testing.assert_array_equal(callable_model.encode(images), before)


def test_encoder_of_another_width_is_refused(callable_model, texts):
    before = callable_model.encode(texts)
    with pytest.raises(ValueError, match=r"9 wide.*32; reset=True"):
        callable_model.swap_encoder("text", vectors(9, "text"))
    np.testing.assert_array_equal(callable_model.encode(texts), before)


def test_encoder_of_another_width_gets_new_blocks_on_request(callable_model, texts):
    callable_model.swap_encoder("text", vectors(9, "text"), reset=True)
    assert callable_model.encode(texts).shape == (12, 8)


def test_encoder_of_another_modality_is_refused(callable_model):
    with pytest.raises(ValueError, match=r"text"):
        callable_model.swap_encoder("image", vectors(48, "text"))


def test_encoder_is_swapped_by_name_under_a_tower_of_any_name(dinov2_folder, mixed):
    photo = [FrozenEncoder(dinov2_folder), TokenProjector(24, 8), Pooling("mean")]
    model = FreezeAlign({"photo": photo}, device="cpu")
    expected = model.encode(mixed[0])
    model.swap_encoder("photo", dinov2_folder)
    np.testing.assert_allclose(model.encode(mixed[0]), expected, **SLACK)


def test_unknown_tower_cannot_be_swapped(callable_model):
    with pytest.raises(ValueError, match="no 'audio' tower"):
        callable_model.swap_encoder("audio", vectors(4, "audio"))


# Seeds, devices, counts


def weights(model: FreezeAlign) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]


def make(seed: int | None) -> FreezeAlign:
    return FreezeAlign([vectors(4, "image"), vectors(4, "text")], dim=8, seed=seed, device="cpu")


def test_same_seed_gives_the_same_weights():
    assert all(torch.equal(first, second) for first, second in zip(weights(make(3)), weights(make(3)), strict=True))


def test_other_seed_gives_other_weights():
    assert not all(torch.equal(first, second) for first, second in zip(weights(make(3)), weights(make(4))))


def test_seed_leaves_the_global_generator_alone():
    torch.manual_seed(987)  # not where a model made before left off
    state = torch.get_rng_state()
    make(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_seed_the_global_generator_is_used():
    torch.manual_seed(5)
    first = weights(make(None))
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(make(None))))


def test_model_lives_where_it_is_told():
    model = FreezeAlign([vectors(4, "text")], dim=8, device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.device.type == "meta"


def test_encode_moves_the_model_to_the_device_it_is_told(callable_model, texts):
    callable_model.encode(texts, device="cpu")
    assert callable_model.device.type == "cpu"


def test_parameters_are_counted(shared):
    encoders = sum(p.numel() for encoder in shared.encoders.values() for p in encoder.parameters())
    trainable = shared.num_parameters(only_trainable=True)
    blocks = 2 * _token(24, 16) + _token(20, 16) + (16 * 16 + 16) * 2 + 32
    assert trainable == blocks + 1
    assert shared.num_parameters() == encoders + trainable


def _token(width: int, dim: int) -> int:
    return 2 * width + 2 * (width * dim + dim) + dim * dim + dim


def test_a_new_model_is_ready_to_encode_not_to_train(shared):
    assert not shared.training


def test_similarity_is_the_cosine_for_tools_that_ask(shared):
    assert shared.similarity_fn_name == "cosine"
