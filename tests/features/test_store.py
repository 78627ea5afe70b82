"""Frozen features: extracted once, kept, opened again, and refused where they do not belong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from freezealign import FeatureStore, FreezeAlign, FrozenEncoder
from freezealign.encoders.callable import CallableEncoder
from freezealign.features.columns import Column

CAPTIONS = [["a", "a red apple"], ["a car"], ["a dog", "a blue dog", "number 1 2 3 4"]]


@pytest.fixture(scope="module")
def paper(dinov2_folder, bert_folder) -> FreezeAlign:
    """The paper's wiring; no test changes it."""
    return FreezeAlign({"image": dinov2_folder, "text": bert_folder}, recipe="token", dim=16, seed=0, device="cpu")


def extract(model: FreezeAlign, data, *args, **options) -> FeatureStore:
    return model.extract_features(data, *args, show_progress_bar=False, **options)


def contents(store: FeatureStore) -> dict[str, list[np.ndarray]]:
    """Every token, summary vector and grid of every item, one after another, without padding."""
    found: dict[str, list[np.ndarray]] = {}
    for modality in store.features:
        features = store[modality]
        for row, length in enumerate(features.lengths()):
            for key, value in features.load([row]).items():
                array = np.asarray(value)
                found.setdefault(f"{modality} {key}", []).append(array if key == "grid" else array[:, :length])
    return found


def assert_equal(first: FeatureStore, second: FeatureStore, atol: float = 0) -> None:
    one, other = contents(first), contents(second)
    assert one.keys() == other.keys()
    for key in one:
        assert len(one[key]) == len(other[key]), key
        for left, right in zip(one[key], other[key]):
            np.testing.assert_allclose(left, right, atol=atol, rtol=0, err_msg=key)
    for modality in first.features:
        np.testing.assert_array_equal(first.counts(modality), second.counts(modality))


def collate(batch):
    return [image for image, _ in batch], [text for _, text in batch]


# There and back


def test_store_equals_itself_after_saving(paper, pairs, tmp_path):
    store = extract(paper, pairs)
    store.save(tmp_path / "store")
    assert_equal(FeatureStore.open(tmp_path / "store"), store)


def test_extracting_to_a_folder_saves_there(paper, pairs, tmp_path):
    store = extract(paper, pairs, tmp_path / "some" / "store")
    assert_equal(FeatureStore.open(tmp_path / "some" / "store"), store)


def test_opened_store_keeps_captions_and_what_was_skipped(paper, images, tmp_path):
    store = extract(paper, list(zip(images[:4], [*CAPTIONS, ""])))
    store.save(tmp_path / "store")
    opened = FeatureStore.open(tmp_path / "store")
    assert opened.counts("text").tolist() == [2, 1, 3]
    assert opened["text"].captions(np.arange(6)) == [caption for captions in CAPTIONS for caption in captions]
    assert opened["text"].captions([5, 0]) == [CAPTIONS[2][2], CAPTIONS[0][0]]
    assert opened.skipped == store.skipped != []


def test_captions_of_a_selection_are_its_own(paper, images):
    store = extract(paper, list(zip(images[:3], CAPTIONS))).select([2, 1])
    assert store["text"].captions(np.arange(4)) == [*CAPTIONS[2], *CAPTIONS[1]]


def test_images_have_no_captions(paper, pairs):
    with pytest.raises(ValueError, match="features of image have no captions"):
        extract(paper, pairs)["image"].captions([0])


# Names


def test_items_are_named_by_the_data_or_by_their_position(paper, images, tmp_path):
    names = ["n01440764/1.jpg", None, 7, "猫"]
    data = [{"id": name, "image": image, "text": "a"} for name, image in zip(names, images)]
    store = extract(paper, [{"image": None, "text": "a"}, *data], tmp_path / "store", batch_size=2)
    assert store.ids == ["n01440764/1.jpg", "2", "7", "猫"]
    assert FeatureStore.open(tmp_path / "store").select([3, 0]).ids == ["猫", "n01440764/1.jpg"]


def test_names_come_with_batches_too(paper, images):
    batches = [{"image": images[i : i + 2], "text": ["a", "a dog"], "id": [f"p{i}", f"p{i + 1}"]} for i in (0, 2)]
    assert extract(paper, batches).ids == ["p0", "p1", "p2", "p3"]


def test_several_captions_under_one_name_are_one_item(paper):
    data = [{"id": "ab", "text": ["a", "a dog"]}, {"id": 7, "text": ["a car"]}]
    store = extract(paper, data, modalities=["text"])
    assert store.ids == ["ab", "7"] and store.counts("text").tolist() == [2, 1]


def test_store_tells_its_size_level_and_encoders(paper, pairs):
    names = ", ".join(f"{name}: {encoder.name}" for name, encoder in paper.encoders.items())
    assert repr(extract(paper, pairs)) == f"FeatureStore(12 items, tokens, {names})"


def test_stored_features_are_what_the_encoders_give(paper, images, texts):
    store = extract(paper, list(zip(images, texts)), batch_size=5)
    for modality, items in {"image": images, "text": texts}.items():
        encoder = paper.encoders[modality]
        for row, item in enumerate(items):
            expected = encoder(encoder.preprocess([item]))
            loaded = store[modality].load([row])
            for key in ("token_embeddings", "cls_token_embeddings"):
                if key in loaded:
                    torch.testing.assert_close(loaded[key], expected[key], atol=1e-5, rtol=0)


def test_embeddings_of_an_opened_store_are_the_models(paper, images, texts, tmp_path):
    extract(paper, list(zip(images, texts)), tmp_path / "store", dtype="float32")
    opened = FeatureStore.open(tmp_path / "store")
    np.testing.assert_allclose(paper.encode(opened["image"]), paper.encode(images), atol=1e-5)
    np.testing.assert_allclose(paper.encode(opened["text"]), paper.encode(texts), atol=1e-5)


def test_token_embeddings_of_a_store_are_the_models(paper, images, texts):
    store = extract(paper, list(zip(images, texts)))
    for modality, items in {"image": images, "text": texts}.items():
        for one, other in zip(paper.encode_tokens(store[modality]), paper.encode_tokens(items)):
            np.testing.assert_allclose(one.embeddings, other.embeddings, atol=1e-5)
            assert one.grid == other.grid


def test_opening_reads_no_embedding(paper, pairs, tmp_path, monkeypatch):
    extract(paper, pairs, tmp_path / "store")
    read = []
    take = Column.take
    monkeypatch.setattr(Column, "take", lambda self, index: read.append(len(index)) or take(self, index))
    opened = FeatureStore.open(tmp_path / "store")
    assert read == []
    opened["image"].load([3])
    assert max(read) == 16  # one picture of 4 x 4 patches


def test_saved_arrays_are_plain_numpy(paper, pairs, tmp_path):
    extract(paper, pairs, tmp_path / "store")
    array = np.load(tmp_path / "store" / "image" / "token_embeddings" / "00000.npy", allow_pickle=False)
    assert (array.shape, array.dtype) == ((12 * 16, 24), np.float16)  # 12 images of 4 x 4 patches, 24 wide
    suffixes = {path.suffix for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert suffixes == {".npy", ".json"}


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batch_size_does_not_change_features(paper, images, texts, batch_size):
    data = list(zip(images[:6], [["a", "a red apple"], *texts[:5]]))
    assert_equal(extract(paper, data, batch_size=batch_size), extract(paper, data, batch_size=3), atol=1e-5)


def test_extraction_carries_no_gradient_and_no_dropout(paper, pairs):
    paper.train()
    trained = extract(paper, pairs)
    paper.eval()
    assert_equal(trained, extract(paper, pairs))


# Several captions, variable lengths


def test_every_caption_of_an_image_is_kept(paper, images):
    store = extract(paper, list(zip(images[:3], CAPTIONS)))
    assert len(store) == 3
    assert len(store["image"]) == 3
    assert len(store["text"]) == 6
    assert store.counts("text").tolist() == [2, 1, 3]
    flat = [caption for captions in CAPTIONS for caption in captions]
    np.testing.assert_allclose(paper.encode(store["text"]), paper.encode(flat), atol=1e-5)


def test_texts_keep_their_own_lengths(paper, images):
    texts = ["a", "a red apple car dog", "a red"]
    store = extract(paper, list(zip(images, texts)))
    assert store["text"].lengths().tolist() == [3, 7, 4]


def test_a_batch_is_padded_to_its_longest(paper, images):
    store = extract(paper, list(zip(images, ["a", "a red apple car dog", "a red"])))
    batch = store["text"].load([0, 2])
    assert batch["token_embeddings"].shape == (2, 4, 20)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_special_tokens_stay_marked(paper, images):
    batch = extract(paper, [(images[0], "a red apple")])["text"].load([0])
    assert batch["special_tokens_mask"].tolist() == [[True, False, False, False, True]]


def test_patches_keep_their_grid(paper, pairs):
    assert extract(paper, pairs)["image"].load([3, 5])["grid"] == (4, 4)


def test_one_row_of_each_modality_is_drawn_for_training(paper, images):
    store = extract(paper, list(zip(images[:3], CAPTIONS)))
    batch, _ = store.load(np.array([2, 0]), np.array([0.99, 0.0]))
    expected = paper.encode([CAPTIONS[2][2], CAPTIONS[0][0]])
    np.testing.assert_allclose(paper(batch)["text"].detach().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(paper(batch)["image"].detach().numpy(), paper.encode([images[2], images[0]]), atol=1e-5)


def test_every_caption_can_be_drawn(paper, images):
    store = extract(paper, list(zip(images[:3], CAPTIONS)))
    drawn = [store.load(np.array([2]), np.array([choice]))[0]["text"] for choice in (0.0, 0.34, 0.67)]
    lengths = [int(batch["attention_mask"].sum()) for batch in drawn]
    assert lengths == [4, 5, 7]


# Selecting


def test_selected_items_come_in_the_order_asked_for(paper, images):
    store = extract(paper, list(zip(images[:3], CAPTIONS))).select([2, 0])
    assert len(store) == 2
    np.testing.assert_allclose(paper.encode(store["image"]), paper.encode([images[2], images[0]]), atol=1e-5)
    np.testing.assert_allclose(paper.encode(store["text"]), paper.encode([*CAPTIONS[2], *CAPTIONS[0]]), atol=1e-5)
    assert store.counts("text").tolist() == [3, 2]


def test_selecting_twice_selects_from_the_selection(paper, pairs, texts):
    store = extract(paper, pairs).select(slice(4, 10)).select([1, 3])
    np.testing.assert_allclose(paper.encode(store["text"]), paper.encode([texts[5], texts[7]]), atol=1e-5)


def test_training_rows_of_a_selection_are_its_own(paper, pairs, texts):
    batch, _ = extract(paper, pairs).select([7, 2]).load(np.array([0]), np.array([0.5]))
    np.testing.assert_allclose(paper(batch)["text"].detach().numpy(), paper.encode([texts[7]]), atol=1e-5)


def test_selecting_by_mask(paper, pairs):
    assert len(extract(paper, pairs).select(np.arange(12) % 3 == 0)) == 4


def test_selecting_nothing_gives_an_empty_store(paper, pairs):
    store = extract(paper, pairs).select([])
    assert len(store) == 0
    assert paper.encode(store["image"]).shape == (0, 16)


def test_selecting_shares_the_arrays(paper, pairs):
    store = extract(paper, pairs)
    selected = store.select([1, 2])
    columns = [part["image"].columns["token_embeddings"].parts[0] for part in (selected, store)]
    assert np.shares_memory(*columns)


def test_saved_selection_opens_as_the_selection(paper, pairs, tmp_path):
    selected = extract(paper, pairs).select([7, 2])
    selected.save(tmp_path / "store")
    assert_equal(FeatureStore.open(tmp_path / "store"), selected)


# Stores that do not belong, or are not complete


def other_text_encoder(items):
    return np.ones((len(items), 20), np.float32)


def test_store_of_another_encoder_is_refused_with_both_fingerprints(paper, pairs, dinov2_folder):
    store = extract(paper, pairs)
    other = FreezeAlign([dinov2_folder, FrozenEncoder(other_text_encoder, "text")], dim=16, device="cpu")
    with pytest.raises(ValueError, match="text features were made by another encoder") as error:
        other.fit(store, epochs=1, show_progress_bar=False)
    named = set(re.findall("[0-9a-f]{64}", str(error.value)))
    assert named == {paper.encoders["text"].fingerprint, other.encoders["text"].fingerprint}


def test_store_without_a_modality_of_the_model_is_refused(paper, images):
    store = paper.extract_features([{"image": image} for image in images], modalities=["image"])
    with pytest.raises(ValueError, match=r"has \['image'\].*'text'"):
        paper.fit(store, epochs=1, show_progress_bar=False)


def test_existing_folder_is_refused_before_any_work(paper, tmp_path):
    def never():
        pytest.fail("the data was read")
        yield

    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=re.escape(str(tmp_path))):
        extract(paper, never(), tmp_path)


def test_saving_over_a_store_is_refused(paper, pairs, tmp_path):
    store = extract(paper, pairs)
    store.save(tmp_path / "store")
    with pytest.raises(FileExistsError, match=r"FeatureStore\.open"):
        store.save(tmp_path / "store")


def test_existing_store_is_reused_on_request(paper, pairs, tmp_path):
    first = extract(paper, pairs, tmp_path / "store")
    assert_equal(extract(paper, [], tmp_path / "store", reuse=True), first)


def test_store_of_another_encoder_is_not_reused(paper, pairs, dinov2_folder, tmp_path):
    extract(paper, pairs, tmp_path / "store")
    other = FreezeAlign([dinov2_folder, FrozenEncoder(other_text_encoder, "text")], dim=16, device="cpu")
    with pytest.raises(ValueError, match="made by another encoder"):
        extract(other, pairs, tmp_path / "store", reuse=True)


def test_failed_save_leaves_nothing_behind(paper, pairs, tmp_path, monkeypatch):
    store = extract(paper, pairs)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        store.save(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_later_version_is_refused(paper, pairs, tmp_path):
    extract(paper, pairs, tmp_path / "store")
    manifest = tmp_path / "store" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 99}))
    with pytest.raises(ValueError, match=r"later freezealign.*pip install -U freezealign"):
        FeatureStore.open(tmp_path / "store")


def test_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.json"):
        FeatureStore.open(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null"])
def test_damaged_manifest_is_refused(paper, pairs, tmp_path, content):
    extract(paper, pairs, tmp_path / "store")
    (tmp_path / "store" / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"store"):
        FeatureStore.open(tmp_path / "store")


def test_every_missing_array_is_named(paper, pairs, tmp_path):
    extract(paper, pairs, tmp_path / "store")
    for path in sorted((tmp_path / "store").rglob("*.npy")):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(ValueError, match=re.escape(str(path))):
            FeatureStore.open(tmp_path / "store")
        path.write_bytes(content)


def test_every_truncated_array_is_named(paper, pairs, tmp_path):
    extract(paper, pairs, tmp_path / "store")
    for path in sorted((tmp_path / "store").rglob("*.npy")):
        content = path.read_bytes()
        path.write_bytes(content[:-8])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            FeatureStore.open(tmp_path / "store")
        path.write_bytes(content)


def test_path_out_of_the_store_is_refused(paper, pairs, tmp_path):
    """A store may come from somebody else: a name in its manifest must not reach another folder."""
    extract(paper, pairs, tmp_path / "store")
    extract(paper, pairs, tmp_path / "private")
    shard = tmp_path / "store" / "shards" / "00000.json"
    shard.write_text(shard.read_text().replace('"text/', '"../private/text/'))
    with pytest.raises(ValueError, match="outside"):
        FeatureStore.open(tmp_path / "store")


# Bad items


@pytest.fixture
def truncated(tmp_path) -> Path:
    path = tmp_path / "truncated.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    return path


BAD = {
    "missing file": (lambda image: ("no/such/picture.png", "a"), r"no such image file.*no/such/picture\.png"),
    "not an image": (lambda image: (b"nothing", "a"), "not an image"),
    "no image": (lambda image: (None, "a"), "None where image"),
    "empty caption": (lambda image: (image, "  "), "empty"),
    "no caption": (lambda image: (image, None), "None where text"),
    "no captions": (lambda image: (image, []), "no text"),
    "no good caption of two": (lambda image: (image, ["", None]), "empty"),
    "number for a caption": (lambda image: (image, 3), "expected a text"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_item_is_skipped_and_listed_with_index_and_reason(paper, images, kind):
    make, reason = BAD[kind]
    store = extract(paper, [(images[0], "a"), make(images[1]), (images[2], "a dog")], batch_size=2)
    assert [entry.index for entry in store.skipped] == [1]
    assert re.search(reason, store.skipped[0].reason)
    np.testing.assert_allclose(paper.encode(store["image"]), paper.encode([images[0], images[2]]), atol=1e-5)
    np.testing.assert_allclose(paper.encode(store["text"]), paper.encode(["a", "a dog"]), atol=1e-5)


@pytest.mark.parametrize("kind", BAD)
def test_strict_raises_at_a_bad_item_with_its_position(paper, images, kind):
    make, reason = BAD[kind]
    with pytest.raises(ValueError, match=rf"pair 1: .*{reason}"):
        extract(paper, [(images[0], "a"), make(images[1]), (images[2], "a")], strict=True)


def test_truncated_image_is_skipped(paper, images, truncated):
    store = extract(paper, [(images[0], "a"), (truncated, "a"), (images[2], "a")])
    assert [entry.index for entry in store.skipped] == [1]
    assert "truncated.png" in store.skipped[0].reason


def test_skipped_items_are_counted_in_the_log(paper, images, caplog):
    extract(paper, [(images[0], "a"), (None, "a"), (images[2], "")])
    assert "skipped 2 of 3 pairs" in caplog.text


def test_skipped_items_are_listed_in_order_across_batches(paper, images, texts):
    data = [
        (None if i % 4 == 1 else image, "" if i % 5 == 3 else text)
        for i, (image, text) in enumerate(zip(images, texts))
    ]
    store = extract(paper, data, batch_size=2)
    bad = [i for i in range(12) if i % 4 == 1 or i % 5 == 3]
    assert [entry.index for entry in store.skipped] == bad
    assert len(store) == 12 - len(bad)


def test_good_data_skips_nothing(paper, pairs):
    assert extract(paper, pairs).skipped == []


def nan_where_bad(items):
    rows = np.ones((len(items), 3), np.float32)
    rows[[i for i, item in enumerate(items) if item.startswith("bad")], 1] = np.nan
    return rows


@pytest.fixture
def nan_model(dinov2_folder) -> FreezeAlign:
    return FreezeAlign([dinov2_folder, FrozenEncoder(nan_where_bad, "text")], dim=8, device="cpu")


def test_non_finite_features_are_skipped_and_listed(nan_model, images):
    store = extract(nan_model, [(images[0], "a"), (images[1], ["fine", "bad"]), (images[2], "a"), (images[3], "bad")])
    assert [(entry.index, entry.item) for entry in store.skipped] == [(1, "text 1"), (3, "")]
    assert "NaN" in store.skipped[0].reason
    assert len(store) == 3 and store["text"].captions([0, 1, 2]) == ["a", "fine", "a"]


def test_non_finite_features_raise_when_strict(nan_model, images):
    with pytest.raises(ValueError, match=r"pair 1: the text encoder .* NaN"):
        extract(nan_model, [(images[0], "a"), (images[1], "bad")], strict=True)


def test_nothing_but_bad_items_is_an_error_with_reasons(paper, images):
    with pytest.raises(ValueError, match=r"no pair that can be read.*pair 0: .*empty.*pair 1: .*None"):
        extract(paper, [(images[0], ""), (images[1], None)])


@pytest.mark.parametrize("data", [[], iter([])])
def test_no_data_is_an_error(paper, data):
    with pytest.raises(ValueError, match="data is empty"):
        extract(paper, data)


def test_a_pair_that_lacks_a_modality_says_what_to_rename(paper, images):
    with pytest.raises(ValueError, match=r"\['text'\] missing.*rename_column"):
        extract(paper, [{"image": images[0], "caption": "a"}])


def test_something_that_is_no_pair_is_an_error(paper, images):
    with pytest.raises(ValueError, match=r"a pair is \(image, text\).*length 3"):
        extract(paper, [(images[0], "a", "b")])


# Where data comes from


@pytest.fixture(scope="module")
def expected(paper):
    """Features of twelve pairs given as a list of tuples."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)) for i in range(12)]
    words = [" ".join(["a", *map(str, range(i))]) for i in range(12)]
    return list(zip(pictures, words)), extract(paper, list(zip(pictures, words)))


def test_generator(paper, expected):
    data, store = expected
    assert_equal(extract(paper, (pair for pair in data)), store)


def test_list_of_dicts(paper, expected):
    data, store = expected
    assert_equal(extract(paper, [{"image": image, "text": text} for image, text in data]), store)


def test_dicts_may_have_other_keys_in_any_order(paper, expected):
    data, store = expected
    dicts = [{"id": i, "text": text, "image": image, "tags": ["x"]} for i, (image, text) in enumerate(data)]
    assert_equal(extract(paper, dicts), store)


def test_captions_may_come_before_the_image(paper, images):
    data = list(zip(images[:3], CAPTIONS))
    dicts = [{"text": captions, "image": image} for image, captions in data]
    assert_equal(extract(paper, dicts), extract(paper, data))


def test_data_loader(paper, expected):
    data, store = expected
    assert_equal(extract(paper, DataLoader(data, batch_size=5, collate_fn=collate)), store, atol=1e-5)


def test_data_loader_of_tensors(paper, expected):
    data, _ = expected
    arrays = [(torch.from_numpy(np.array(image.resize((28, 28)))).permute(2, 0, 1), text) for image, text in data]
    store = extract(paper, DataLoader(arrays, batch_size=5))
    assert_equal(store, extract(paper, arrays), atol=1e-5)


def test_data_loader_of_dicts_with_labels_first(paper, expected):
    data, _ = expected
    dicts = [
        {"label": i, "image": torch.from_numpy(np.array(image.resize((28, 28)))).permute(2, 0, 1), "text": text}
        for i, (image, text) in enumerate(data)
    ]
    assert_equal(extract(paper, DataLoader(dicts, batch_size=5)), extract(paper, dicts), atol=1e-5)


def test_data_loader_of_a_stream(paper, expected):
    data, store = expected

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(data)

    assert_equal(extract(paper, DataLoader(Stream(), batch_size=5, collate_fn=collate)), store, atol=1e-5)


def test_data_loader_with_several_captions(paper, images):
    data = list(zip(images[:3], CAPTIONS))
    store = extract(paper, DataLoader(data, batch_size=2, collate_fn=collate))
    assert_equal(store, extract(paper, data), atol=1e-5)


def test_batch_with_more_images_than_texts_is_an_error(paper, images):
    with pytest.raises(ValueError, match=r"'image': 3, 'text': 2"):
        extract(paper, [(images[:3], ["a", "b"])])


@pytest.fixture(scope="module")
def huggingface(expected):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    data, _ = expected
    columns = {"image": [image for image, _ in data], "text": [text for _, text in data]}
    return datasets.Dataset.from_dict(columns, features=features)


def test_huggingface_dataset(paper, expected, huggingface):
    assert_equal(extract(paper, huggingface), expected[1])


def test_huggingface_dataset_with_several_captions(paper, images, huggingface):
    import datasets

    features = datasets.Features({"text": [datasets.Value("string")], "image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": images[:3], "text": CAPTIONS}, features=features)
    assert_equal(extract(paper, data), extract(paper, list(zip(images[:3], CAPTIONS))))


def test_huggingface_stream(paper, expected, huggingface):
    assert_equal(extract(paper, huggingface.to_iterable_dataset()), expected[1])


def test_huggingface_dataset_with_a_broken_image(paper, huggingface, truncated):
    import datasets

    rows = [truncated.read_bytes(), huggingface.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]]
    data = datasets.Dataset.from_dict({"image": [{"bytes": row, "path": None} for row in rows], "text": ["a", "b"]})
    store = extract(paper, data.cast_column("image", datasets.Image()))
    assert [entry.index for entry in store.skipped] == [0]
    assert len(store) == 1


def test_images_as_arrays(paper, expected):
    data, store = expected
    assert_equal(extract(paper, [(np.asarray(image), text) for image, text in data]), store)


def test_captions_as_an_array_of_strings(paper, images):
    data = list(zip(images[:3], CAPTIONS))
    arrays = [(image, np.array(captions)) for image, captions in data]
    assert_equal(extract(paper, arrays), extract(paper, data))


def test_one_modality_alone(paper, images):
    store = extract(paper, [{"image": image} for image in images], modalities=["image"])
    assert list(store.features) == ["image"]
    np.testing.assert_allclose(paper.encode(store["image"]), paper.encode(images), atol=1e-5)


def test_three_modalities(dinov2_folder, bert_folder, images, texts):
    audio = FrozenEncoder(CallableEncoder(lambda items: np.stack(items), "audio", 4))
    model = FreezeAlign([dinov2_folder, bert_folder, audio], dim=8, device="cpu")
    clips = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    store = extract(model, list(zip(images, texts, clips)))
    np.testing.assert_allclose(model.encode(store["audio"]), model.encode(list(clips), modality="audio"), atol=1e-5)


# Memory


def test_features_that_will_not_fit_are_refused_early(paper, images, monkeypatch):
    read = []

    class Data(list):
        def __iter__(self):
            for index in range(len(self)):
                read.append(index)
                yield self[index]

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
    data = Data([(images[0], "a")] * 1000)
    with pytest.raises(MemoryError, match=r"GiB.*KiB a pair.*cache_features=False"):
        extract(paper, data, batch_size=4)
    assert len(read) < 100


def test_features_that_fit_are_not_refused(paper, pairs, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
    assert len(extract(paper, pairs)) == 12


def test_data_without_a_length_is_stopped_before_memory_runs_out(paper, images, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20_000))

    def stream():
        for _ in range(500):
            yield images[0], "a"

    with pytest.raises(MemoryError, match="cache_features=False"):
        extract(paper, stream(), batch_size=2)
