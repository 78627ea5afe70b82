"""Columns, runs and strings against the obvious way to do the same, and shards that nobody can see from outside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import extract, make_pairs

from freezealign import FeatureStore
from freezealign.features.columns import Column, NpyFile, Runs, Strings, as_bytes

sizes = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def parts_of(lengths: list[int], width: int) -> list[np.ndarray]:
    values = np.arange(sum(lengths) * width, dtype=np.int32).reshape(-1, width)
    return np.split(values, np.cumsum(lengths)[:-1])


@given(st.data(), sizes, st.integers(1, 3))
@settings(max_examples=60)
def test_column_is_its_parts_one_after_another(tmp_path_factory, data, lengths, width):
    folder, parts, joined = tmp_path_factory.mktemp("column"), parts_of(lengths, width), []
    for number, part in enumerate(parts):
        if data.draw(st.booleans()):
            np.save(folder / f"{number}.npy", part)
            joined.append(NpyFile(folder / f"{number}.npy"))
        else:
            joined.append(part)
    column, whole = Column(joined), np.concatenate(parts)
    index = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=12)) if len(whole) else [], np.int64)
    assert len(column) == len(whole)
    np.testing.assert_array_equal(column.all(), whole)
    taken = column.take(index)
    assert taken.dtype == whole.dtype
    np.testing.assert_array_equal(taken, whole[index])


@pytest.mark.parametrize("index", [[12], [0, 99], [-13]])
def test_row_that_is_not_there_is_an_error(index):
    with pytest.raises(IndexError):
        Column(parts_of([5, 7], 2)).take(np.array(index))


@given(st.lists(st.integers(0, 299), unique=True, max_size=300).map(sorted), st.integers(0, 250), st.integers(20, 50))
def test_long_runs_are_read_as_single_rows_are(tmp_path_factory, scattered, start, length):
    """Ascending rows with a long run among them are read from the file in one go: to the same effect."""
    folder = tmp_path_factory.mktemp("column")
    rows = np.arange(600, dtype=np.float32).reshape(300, 2)
    for number, part in enumerate(np.split(rows, [70, 190])):
        np.save(folder / f"{number}.npy", part)
    column = Column([NpyFile(folder / f"{number}.npy") for number in range(3)])
    run = np.arange(start, min(start + length, 300))
    for index in (run, np.union1d(run, np.array(scattered, np.int64))):
        np.testing.assert_array_equal(column.take(index), rows[index])


def test_file_that_became_shorter_is_named(tmp_path):
    path = tmp_path / "column.npy"
    np.save(path, np.zeros((100, 4)))
    column = Column([NpyFile(path)])
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ValueError, match=r"column\.npy cannot be read"):
        column.take(np.arange(100))


def test_indices_of_a_byte_may_descend(tmp_path):
    np.save(tmp_path / "column.npy", np.arange(9))
    column = Column([NpyFile(tmp_path / "column.npy"), np.arange(9, 12)])
    assert column.take(np.array([5, 3, 10], np.uint8)).tolist() == [5, 3, 10]


def test_what_was_taken_is_no_view():
    parts = parts_of([3], 2)
    Column(parts).take(np.arange(3))[:] = -1
    assert parts[0].min() == 0


@given(st.data(), st.lists(st.integers(0, 4), max_size=8) | st.integers(0, 4).map(lambda n: [n] * 5))
def test_runs_are_what_a_loop_finds(data, lengths):
    runs, ends = Runs(np.array(lengths, np.int32)), np.cumsum(lengths)
    owners = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=10)) if lengths else []
    owners = np.array(owners, np.int64)
    expected = [row for owner in owners for row in range(int(ends[owner]) - lengths[owner], int(ends[owner]))]
    assert runs.rows(owners).tolist() == expected
    assert runs.lengths(owners).tolist() == [lengths[owner] for owner in owners]
    assert len(runs) == len(lengths)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32])
@pytest.mark.parametrize("lengths", [[300] * 120, [*range(250, 370)]])
def test_indices_of_few_bits_reach_every_row(dtype, lengths):
    runs, owners = Runs(np.array(lengths, np.int32)), np.array([127, 119, 5]).clip(max=119)
    assert runs.rows(owners.astype(dtype)).tolist() == runs.rows(owners).tolist()


@given(st.data(), st.lists(st.text(), max_size=6), st.integers(0, 6))
def test_strings_come_back_as_they_were(data, texts, cut):
    halves = [as_bytes(texts[:cut]), as_bytes(texts[cut:])]
    strings = Strings(Column([utf8 for utf8, _ in halves]), Column([lengths for _, lengths in halves]))
    index = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=8)) if texts else []
    assert strings.take(np.array(index, np.int64)) == [texts[i] for i in index]


@pytest.mark.parametrize("text", ["\udcff", "a\ud800b", "\x00", "", "é́", "👩‍👩‍👧"])
def test_any_python_string_can_be_an_id(tmp_path, text):
    """A file name that is no UTF-8 reaches Python with lone surrogates in it."""
    data = [{**pair, "id": text} for pair in make_pairs(3)]
    assert extract(tmp_path / "store", data).ids == [text] * 3


# Through a store


def rows_of(store: FeatureStore) -> dict[str, list]:
    """Everything a store shows, as plain lists."""
    found: dict[str, list] = {"ids": store.ids}
    for modality in store.features:
        features = store[modality]
        found[f"{modality} counts"] = store.counts(modality).tolist()
        rows = [features.load([row])["token_embeddings"][0].float().numpy() for row in range(len(features))]
        found[f"{modality} tokens"] = [row.tolist() for row in rows]
    found["captions"] = store["text"].captions(np.arange(len(store["text"])))
    return found


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory) -> FeatureStore:
    return extract(tmp_path_factory.mktemp("disk") / "store", dtype="float32")


@pytest.mark.parametrize("index", [[], [0], [54, 0, 7, 7], [3, 4, 5], list(range(55))])
def test_read_into_memory_is_selected(on_disk, index):
    resident, selected = on_disk.resident(np.array(index, np.int64)), on_disk.select(index)
    assert rows_of(resident) == rows_of(selected)
    assert rows_of(resident.resident()) == rows_of(selected)
    assert rows_of(selected.resident()) == rows_of(selected)
    assert resident.skipped == selected.skipped


def test_read_into_memory_by_mask_slice_or_list_is_selected(on_disk):
    for index in (np.arange(55) % 3 == 0, slice(4, 40, 5), [1, 2], [-1]):
        assert rows_of(on_disk.resident(index)) == rows_of(on_disk.select(index))


def test_indices_of_a_byte_select_the_same(on_disk):
    wide = np.array([54, 20, 3])
    for narrow in (wide.astype(np.uint8), wide.astype(np.int8)):
        assert rows_of(on_disk.resident(narrow)) == rows_of(on_disk.select(wide))
        text = on_disk["text"]
        assert text.captions(narrow) == text.captions(wide)
        assert np.array_equal(text.load(narrow)["token_embeddings"], text.load(wide)["token_embeddings"])


def test_no_rows_have_no_captions(on_disk):
    assert on_disk["text"].captions([]) == []
    assert on_disk.select([1, 2])["text"].captions([]) == []
    assert on_disk.select([]).ids == []


def test_empty_selection_can_be_saved_and_opened(on_disk, tmp_path):
    on_disk.select([]).save(tmp_path / "store")
    assert len(FeatureStore.open(tmp_path / "store")) == 0


@pytest.mark.parametrize("shard_size", [1, 3, 100])
def test_size_of_a_shard_changes_nothing(on_disk, tmp_path, shard_size):
    store = extract(tmp_path / "store", dtype="float32", batch_size=1, shard_size=shard_size)
    assert rows_of(store) == rows_of(on_disk)
    assert store.skipped == on_disk.skipped


@pytest.mark.parametrize("shard_size", [1, 5, 100])
def test_size_of_a_shard_changes_no_feature_of_a_real_encoder(model, images, texts, tmp_path, shard_size):
    data, options = list(zip(images, texts)), {"level": "tokens", "dtype": "float32", "show_progress_bar": False}
    one = model.extract_features(data, tmp_path / "one", batch_size=1, shard_size=100, **options)
    other = model.extract_features(data, tmp_path / "other", batch_size=1, shard_size=shard_size, **options)
    assert rows_of(other) == rows_of(one)
    batched = model.extract_features(data, tmp_path / "batched", batch_size=4, shard_size=shard_size, **options)
    for mine, its in zip(rows_of(batched)["image tokens"], rows_of(one)["image tokens"]):
        np.testing.assert_allclose(mine, its, atol=1e-5)


def test_shards_of_nothing_but_bad_pairs_are_skipped_over(tmp_path):
    data = [{**pair, "image": None} if i // 7 in (0, 2, 8) else pair for i, pair in enumerate(make_pairs())]
    store = extract(tmp_path / "store", data)
    assert store.ids == [f"picture-{i}" for i in range(60) if i // 7 not in (0, 2, 8) and i % 11 != 10]
    assert {entry.index // 7 for entry in store.skipped} >= {0, 2, 8}
