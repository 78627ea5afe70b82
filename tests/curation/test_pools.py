"""Pools: the same pairs from every form; what is missing, short or of another width is an error."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from made import FORMS, make_pool, make_store, make_vectors, write_arrays, write_tables

from freezealign.curation import open_pool
from freezealign.features import FeatureStore


@pytest.mark.parametrize("form", FORMS)
def test_rows_ids_and_captions_are_those_that_were_written(form, tmp_path):
    vectors = make_vectors()
    pool = make_pool(form, tmp_path, vectors)
    rows = np.array([3, 39, 0, 17, 16, 3])
    np.testing.assert_allclose(pool.vectors.take(rows), vectors[rows], rtol=1e-3)
    assert pool.take(rows, "id") == [f"pair-{row}" for row in rows]
    assert pool.take(rows, "caption") == [f"caption {row}" for row in rows]
    assert (len(pool), pool.width) == vectors.shape


def test_metadata_under_other_names_is_found(tmp_path):
    pool = open_pool(write_tables(tmp_path, make_vectors()))
    assert pool.take(np.array([0, 1]), "licence") == [None, "CC0"]
    assert not pool.has("url")
    with pytest.raises(ValueError, match="does not tell the url"):
        pool.take(np.array([0]), "url")


def test_arrays_without_metadata_are_called_by_row(tmp_path):
    np.save(tmp_path / "some.npy", make_vectors())
    assert open_pool(tmp_path).take(np.array([5, 7]), "id") == ["5", "7"]


def test_items_of_several_rows_count_by_the_first(tmp_path):
    vectors = make_vectors(6)
    store = make_store(vectors)
    two_each = dict(store.columns)
    from freezealign.features.columns import Column

    two_each["items/image"] = Column([np.full(3, 2, np.int32)])
    two_each["items/text"] = Column([np.full(3, 2, np.int32)])
    ids = store._ids
    two_each["items/ids.lengths"] = Column([ids.lengths.all()[:3]])
    pool = open_pool(FeatureStore(store.origins, two_each))
    np.testing.assert_array_equal(pool.vectors.take(np.arange(3)), vectors[::2])
    assert pool.take(np.arange(3), "caption") == ["caption 0", "caption 2", "caption 4"]


def test_selected_items_are_a_pool():
    vectors = make_vectors()
    pool = open_pool(make_store(vectors).select([7, 3, 30]))
    np.testing.assert_array_equal(pool.vectors.take(np.array([2, 0])), vectors[[30, 7]])
    assert pool.take(np.array([2, 0]), "id") == ["pair-30", "pair-7"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "metadata/metadata_2.parquet").unlink(), "go together by number"),
        (lambda f: (f / "img_emb/img_emb_10.npy").unlink(), "go together by number"),
        (
            lambda f: np.save(f / "img_emb/img_emb_2.npy", make_vectors(5).astype(np.float16)),
            "fetch the shorter one again",
        ),
        (lambda f: np.save(f / "img_emb/img_emb_2.npy", make_vectors(13, width=5)), "one width"),
        (lambda f: (f / "img_emb/img_emb_2.npy").write_bytes(b"half"), "cannot be read"),
        (lambda f: (f / "metadata/metadata_2.parquet").write_bytes(b"half"), "not a readable Parquet file"),
    ],
    ids=["no metadata", "no vectors", "short", "narrow", "damaged vectors", "damaged metadata"],
)
def test_damaged_pool_is_refused(damage, message, tmp_path):
    damage(write_arrays(tmp_path, make_vectors()))
    with pytest.raises(ValueError, match=message):
        open_pool(tmp_path)


def test_cut_file_is_refused(tmp_path):
    path = write_arrays(tmp_path, make_vectors()) / "img_emb" / "img_emb_2.npy"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cannot be read"):
        open_pool(tmp_path)


@pytest.mark.parametrize("bad", [[1.0], None, [4.0, 5.0, 6.0], [1.0, None], [], [math.nan, 1.0], [1e300, 1.0]])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_bad_vector_costs_its_row_alone(bad, place, tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    parquet.write_table(pyarrow.table({"embedding": [*rows[:place], bad, *rows[place:]]}), tmp_path / "a.parquet")
    pool = open_pool(tmp_path / "a.parquet")
    found = pool.vectors.take(np.array([3, 2, 1, 0]))[::-1]
    assert not np.isfinite(found[place]).all()
    assert np.delete(found, place, 0).tolist() == rows


@pytest.mark.parametrize("column", [["a", "b"], [1.0, 2.0], [["a"], ["b"]], [None, None], [[], []]])
def test_column_without_vectors_is_refused(column, tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"embedding": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="'embedding' holds no vectors"):
        open_pool(tmp_path / "a.parquet")


def test_files_of_a_pool_may_differ_in_type(tmp_path):
    """A column of nothing has another type than one of strings, and doubles than floats."""
    import pyarrow
    from pyarrow import parquet

    for number, (kind, caption) in enumerate([(pyarrow.float64(), None), (pyarrow.float32(), "b")]):
        vectors = pyarrow.array([[1.0, number]], pyarrow.list_(kind))
        parquet.write_table(pyarrow.table({"embedding": vectors, "caption": [caption]}), tmp_path / f"{number}.parquet")
    pool = open_pool(tmp_path)
    assert pool.take(np.array([1, 0]), "caption") == ["b", None]
    assert pool.vectors.take(np.array([1, 0])).tolist() == [[1, 1], [1, 0]]


def test_files_are_read_in_the_order_of_their_numbers(tmp_path):
    import pyarrow
    from pyarrow import parquet

    names = [f"part-{number}-2fc1-c000.snappy.parquet" for number in (0, 2, 10)]
    for number, name in reversed(list(enumerate(names))):
        parquet.write_table(pyarrow.table({"embedding": [[float(number)]], "key": [name]}), tmp_path / name)
    assert open_pool(tmp_path).take(np.arange(3), "id") == names


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_vectors(5).astype(np.float32), "need one float dtype"),
        (make_vectors(5).astype(">f2"), "need one float dtype"),
        (np.asfortranarray(make_vectors(5).astype(np.float16)), "column by column"),
        (make_vectors(5).astype(np.int16), "need one float dtype"),
    ],
    ids=["float32", "byte order", "Fortran order", "integers"],
)
def test_files_that_cannot_be_read_together_are_refused(other, message, tmp_path):
    np.save(tmp_path / "a_0.npy", make_vectors(5).astype(np.float16))
    np.save(tmp_path / "a_1.npy", other)
    with pytest.raises(ValueError, match=rf"a_1\.npy .*{message}"):
        open_pool(tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_pool_travels_to_other_processes(form, tmp_path):
    vectors = make_vectors()
    pool = pickle.loads(pickle.dumps(make_pool(form, tmp_path, vectors)))
    np.testing.assert_allclose(pool.vectors.take(np.array([30])), vectors[[30]], rtol=1e-3)
    assert pool.take(np.array([30]), "id") == ["pair-30"]


def test_more_files_than_may_be_open_are_read(tmp_path, monkeypatch):
    import resource

    folder = write_tables(tmp_path, make_vectors(240), parts=80)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len([*Path("/proc/self/fd").iterdir()]) + 20, limits[1]))
    try:
        assert open_pool(folder).take(np.arange(240), "id")[-1] == "pair-239"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_pool_of_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no pool of image features"):
        open_pool(tmp_path)
    with pytest.raises(ValueError, match=r"no features of audio; it has \['image', 'text'\]"):
        open_pool(make_store(make_vectors()), "audio")


def test_fingerprint_tells_pools_apart(tmp_path):
    vectors = make_vectors()
    pools = [open_pool(make_store(values)) for values in (vectors, vectors.copy(), vectors + 1, vectors[:-1])]
    first, same, *others = [pool.fingerprint for pool in pools]
    assert first == same
    assert all(first != other for other in others)
