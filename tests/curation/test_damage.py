"""Damage: files of a run or a pool that are not what was written, and rows that cannot be read among those that can."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from made import make_prototypes, make_store, make_vectors, write_shards
from typer.testing import CliRunner

from freezealign.cli import app
from freezealign.curation import (
    CaptionLength,
    EqualCaptions,
    Prototypes,
    Scoring,
    curate,
    find_shards,
    open_pool,
    score_pool,
    write_subset,
)
from freezealign.curation import card as card_module
from freezealign.curation import prototypes as prototypes_module
from freezealign.curation import scoring as scoring_module
from freezealign.files import read_arrays, read_lines, write_arrays_atomically

QUIET = {"show_progress_bar": False}
DEEP = "[" * 100_000


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    for name in ("_draw_coverage", "_draw_scores"):
        monkeypatch.setattr(card_module, name, lambda *_: None)


@pytest.fixture(scope="module")
def pool():
    return open_pool(make_store(make_vectors(40)))


def run(pool, folder: Path):
    return curate(pool, make_prototypes(), folder, per_concept=4, filters=[CaptionLength()], **QUIET)


@pytest.mark.parametrize("content", ["", "[]", "5", "null", DEEP, '{"k": 1e9}', '{"k": -1}'])
def test_request_of_another_form_is_refused(content, pool, tmp_path):
    run(pool, tmp_path)
    (tmp_path / "request.json").write_text(content)
    with pytest.raises(ValueError, match=r"request\.json|was begun with k = "):
        run(pool, tmp_path)


def about(**changes) -> str:
    return json.dumps({"rows": 40, "unusable": 0, "recall": None, **changes})


@pytest.mark.parametrize(
    ("change", "metadata", "skipped"),
    [
        (lambda keys: keys.astype(np.float32), about(), None),
        (lambda keys: keys[0], about(), None),
        (lambda keys: keys[:1], about(), None),
        (lambda keys: keys[:, ::-1], about(), None),
        (lambda keys: np.repeat(keys, 3, 1), about(), None),
        (lambda keys: keys & ~np.uint64(2**32 - 1), about(), None),  # of a row that no pool has
        (lambda keys: keys | np.uint64(2**64 - 2**32), about(), None),  # a NaN
        (None, "null", None),
        (None, DEEP, None),
        (None, about(rows="40"), None),
        (None, about(rows=1e9), None),
        (None, about(rows=-40), None),
        (None, about(recall=math.nan), None),
        (None, about(recall="all"), None),
        (None, about(unusable=2), None),
        (None, about(unusable=2), np.array([50, 1])),
        (None, about(unusable=2), np.array([1.0, 2.0])),
        (None, about(unusable=2), np.array([[1, 2]])),
    ],
)
def test_scores_that_were_not_written_here_are_refused(change, metadata, skipped, pool, tmp_path):
    run(pool, tmp_path)
    path = tmp_path / "scores" / "scores.safetensors"
    keys = read_arrays(path)[0]["keys"]
    arrays = {"keys": keys if change is None else change(keys)} | ({} if skipped is None else {"skipped": skipped})
    write_arrays_atomically(path, arrays, {scoring_module.FILE_KEY: metadata})
    with pytest.raises(ValueError, match=r"scores\.safetensors .*delete it and run again"):
        run(pool, tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        {"keys": {"dtype": "U64", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
        {"keys": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}},
        {"keys": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}},
        {"keys": {"dtype": "U64", "shape": [1], "data_offsets": [0, 8]}},
    ],
)
def test_header_of_something_else_is_refused(header, pool, tmp_path):
    run(pool, tmp_path)
    content = json.dumps(header).encode()
    (tmp_path / "scores" / "scores.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + bytes(8))
    with pytest.raises(ValueError, match="cannot be read as scores"):
        run(pool, tmp_path)


@pytest.mark.parametrize("change", [lambda keys: keys[:, :2], lambda keys: np.repeat(keys, 2, 0)])
def test_state_of_another_pass_is_refused(change, pool, tmp_path):
    scoring = Scoring([pool], [make_prototypes()], 5)
    score_pool(scoring, tmp_path, **QUIET)
    (tmp_path / "scores.safetensors").rename(tmp_path / "state-0-40.safetensors")
    arrays, metadata = read_arrays(tmp_path / "state-0-40.safetensors")
    write_arrays_atomically(tmp_path / "state-0-40.safetensors", {"keys": change(arrays["keys"])}, metadata)
    with pytest.raises(ValueError, match="is of another pass; delete it"):
        score_pool(scoring, tmp_path, **QUIET)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows + 1000,
        lambda rows: -rows,
        lambda rows: rows.astype(float),
        lambda rows: rows[None],
        lambda rows: np.repeat(rows, 2),
        lambda rows: rows[::-1],
        None,
    ],
)
def test_filter_whose_file_is_damaged_is_done_again(change, pool, tmp_path):
    expected = run(pool, tmp_path).ids
    path = tmp_path / "filters" / "0.safetensors"
    arrays, metadata = read_arrays(path)
    rows = arrays["rows"]
    write_arrays_atomically(path, {"rows": change(rows) if change else rows[:3]}, metadata if change else {})
    assert run(pool, tmp_path).ids == expected


@pytest.mark.parametrize(
    "change",
    [
        {"names": "abc"},
        {"names": [1, 2, 3]},
        {"names": None},
        {"names": ["a", "a", "b"]},
        {"names": ["a"] * 100_000},
        {"origin": []},
        {"origin": {"x": 1}},
        {"origin": {"name": 5, "fingerprint": "", "preprocessing": {}}},
        {"provenance": []},
        {"provenance": {"examples": 5}},
        {"provenance": {"examples": {"a": "x"}}},
        {"provenance": {"skipped": 5}},
    ],
)
def test_prototypes_of_another_form_are_refused(change, tmp_path):
    path = tmp_path / "p.safetensors"
    content = json.dumps({"names": list("abc"), "origin": None, "provenance": {}, **change})
    vectors = {"vectors": np.eye(3, 6, dtype=np.float32)}
    write_arrays_atomically(path, vectors, {prototypes_module.FILE_KEY: content})
    with pytest.raises(ValueError, match=r"p\.safetensors holds no prototypes"):
        Prototypes.load(path)


@pytest.mark.parametrize("damage", [5, {"00001.tar": 5}, DEEP])
def test_subset_of_another_form_is_refused(damage, tmp_path):
    shards = find_shards(write_shards(tmp_path / "shards"))
    write_subset(shards, ["pair-1"], tmp_path / "subset", **QUIET)
    path = tmp_path / "subset" / "subset.json"
    content = DEEP if damage == DEEP else json.dumps(json.loads(path.read_text()) | {"damage": damage})
    path.write_text(content)
    with pytest.raises(ValueError, match=r"subset\.json"):
        write_subset(shards, ["pair-1"], tmp_path / "subset", **QUIET)


def test_more_candidates_than_rows_take_no_memory(pool, tmp_path):
    found = score_pool(Scoring([pool], [make_prototypes()], 10**12), tmp_path, **QUIET)
    assert found.keys.shape == (3, 40)


# Rows


def write_table(folder: Path, **columns) -> Path:
    """Twelve rows, five a group."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(exist_ok=True)
    names = {"id": [f"p{i}" for i in range(12)], "caption": [f"c {i}" for i in range(12)]}
    columns = {**names, "embedding": make_vectors(12).tolist(), **columns}
    parquet.write_table(pyarrow.table(columns), folder / "a.parquet", row_group_size=5)
    return folder


def replaced(values: list, place: int, value) -> list:
    return [*values[:place], value, *values[place + 1 :]]


def not_utf8() -> object:
    import pyarrow

    buffers = [pyarrow.py_buffer(np.arange(13, dtype=np.int32).tobytes()), pyarrow.py_buffer(b"abcdefg\xffijkl")]
    return pyarrow.Array.from_buffers(pyarrow.string(), 12, [None, *buffers])


VECTOR = "its vector is missing, zero, not finite or of another width"


@pytest.mark.parametrize(
    ("column", "make", "reason"),
    [
        ("caption", not_utf8, "its caption is not UTF-8"),
        ("id", not_utf8, "its id is not UTF-8"),
        ("id", lambda: replaced(list("abcdefghijkl"), 7, None), "it has no id"),
        ("id", lambda: replaced(list("abcdefghijkl"), 7, ""), "it has no id"),
        ("id", lambda: np.where(np.arange(12) == 7, np.nan, np.arange(12.0)), "it has no id"),
        ("embedding", lambda: replaced(make_vectors(12).tolist(), 7, None), VECTOR),
        ("embedding", lambda: replaced(make_vectors(12).tolist(), 7, [1.0] * 5), VECTOR),
        ("embedding", lambda: replaced(make_vectors(12).tolist(), 7, [0.0] * 6), VECTOR),
        ("embedding", lambda: replaced(make_vectors(12).tolist(), 7, [math.inf, *[1.0] * 5]), VECTOR),
        ("embedding", lambda: replaced(make_vectors(12).tolist(), 7, [1e300, *[1.0] * 5]), VECTOR),
    ],
)
def test_bad_row_is_left_out_counted_and_listed(column, make, reason, tmp_path):
    from pyarrow import parquet

    pool = open_pool(write_table(tmp_path / "pool", **{column: make()}))
    options = {"per_concept": 12, "filters": [CaptionLength(), EqualCaptions()], **QUIET}
    with pytest.raises(ValueError, match=f"1 rows cannot be used, row 7: {reason}"):
        curate(pool, make_prototypes(), tmp_path / "out", strict=True, **options)
    found = curate(pool, make_prototypes(), tmp_path / "out", **options)
    assert sorted(found.selection.rows.tolist()) == [row for row in range(12) if row != 7]
    assert [(entry.index, entry.reason) for entry in found.skipped] == [(7, reason)]
    listed = parquet.read_table(tmp_path / "out" / "skipped.parquet").to_pydict()
    assert listed == {"row": [7], "reason": [reason]}
    counts = json.loads((tmp_path / "out" / "card.json").read_text())["pool"]
    assert counts["unusable"] + counts["unreadable"] + len(found.selection) == counts["rows"] == 12


def test_value_beyond_float16_costs_its_row_alone(tmp_path):
    vectors = make_vectors(12)
    vectors[7, 0] = 1e6
    with np.errstate(over="ignore"):
        np.save(tmp_path / "a.npy", vectors.astype(np.float16))
    found = curate(open_pool(tmp_path), make_prototypes(), tmp_path / "out", per_concept=12, **QUIET)
    assert [(entry.index, entry.reason) for entry in found.skipped] == [(7, VECTOR)]
    assert len(found.selection) == 11


@pytest.mark.parametrize("values", [[[1]] * 12, [{"a": 1}] * 12, [b"a"] * 12])
def test_column_of_another_kind_is_no_field(values, tmp_path):
    assert not open_pool(write_table(tmp_path / "pool", caption=values)).has("caption")
    with pytest.raises(ValueError, match=r"column 'id' is .*, which no id is"):
        open_pool(write_table(tmp_path / "pool", id=values))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr':'<f4','fortran_order':False,'shape':(-4,6)}",
        "{'descr':'<f4','fortran_order':False,'shape':(True,6)}",
        "{'descr':'<f4','fortran_order':False,'shape':(10**30,6)}",
        "{'descr':'<f4','fortran_order':False,'shape':(2**62,6)}",
        "{'descr':'<f4','fortran_order':False,'shape':" + "(" * 5000,
        "{'descr':[('a',)],'fortran_order':False,'shape':(4,6)}",
        "\0",
    ],
)
def test_array_with_a_damaged_header_is_refused(header, tmp_path):
    content = header.encode()
    content += b" " * (-(len(content) + 11) % 64) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(content)) + content + bytes(96))
    with pytest.raises(ValueError, match=r"a\.npy cannot be read"):
        open_pool(tmp_path)


@pytest.mark.parametrize("value", [np.longdouble, np.complex64])
def test_numbers_that_no_product_takes_are_refused(value, tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 6), value))
    with pytest.raises(ValueError, match="one float dtype of at most 8 bytes"):
        open_pool(tmp_path)


# Names


NASTY = [
    "a\nb",
    "c\td",
    "e\0f",
    "\x1b[31mred",
    "g\u2028h",
    '"quoted"',
    "C:\\new",
    " i ",
    "j\udc80",
    "k\r",
    "\ufeffm",
    "\u202el",
    "日本",
]


def test_ids_are_read_as_they_were(tmp_path):
    pool = open_pool(make_store(make_vectors(len(NASTY)), ids=NASTY))
    found = curate(pool, make_prototypes(), tmp_path / "out", per_concept=12, **QUIET)
    assert read_lines(tmp_path / "out" / "ids.txt") == found.ids
    assert sorted(found.ids) == sorted(NASTY)
    lines = (tmp_path / "out" / "ids.txt").read_bytes().split(b"\n")
    assert len(lines) == len(NASTY) + 1
    assert not {b"\x1b", b"\0", b"\r", b"\t"} & {bytes([byte]) for line in lines for byte in line}


def test_file_of_ids_that_was_written_before_is_read(tmp_path):
    (tmp_path / "ids.txt").write_bytes(b'a\nC:\\new\n\n"half\nb\r\nlast')
    assert read_lines(tmp_path / "ids.txt") == ["a", "C:\\new", "", '"half', "b", "last"]


def test_subsets_of_other_ids_are_told_apart(tmp_path):
    shards = find_shards(write_shards(tmp_path / "shards"))
    with pytest.raises(ValueError, match="are in none of the 3 shards"):
        write_subset(shards, ["pair-1", "pair-2\npair-3"], tmp_path / "subset", **QUIET)
    with pytest.raises(ValueError, match="was begun with ids = "):
        write_subset(shards, ["pair-1", "pair-2", "pair-3"], tmp_path / "subset", **QUIET)


def test_names_of_concepts_are_shown_without_what_a_terminal_acts_on(pool, tmp_path):
    names = ["a\n| b", "\x1b[31mred", "c\udc80"]
    prototypes = Prototypes.from_vectors(make_vectors(3), names)
    prototypes.save(tmp_path / "p.safetensors")
    assert Prototypes.load(tmp_path / "p.safetensors").names == tuple(names)
    pictures = [{"id": "pair-0", "image": np.zeros((4, 4, 3), np.uint8), "text": "a"}]
    pictures += [{"id": f"pair-{i}", "image": b"", "text": "a"} for i in range(1, 40)]
    curate(pool, prototypes, tmp_path / "out", per_concept=41, pictures=pictures, **QUIET)
    text = (tmp_path / "out" / "card.md").read_text()
    assert "a\\n| b (" in text
    assert "\\x1b[31mred (" in text
    assert "\x1b" not in text
    assert "c\\udc80 (" in text
    assert json.loads((tmp_path / "out" / "card.json").read_text())["coverage"]["after"].keys() == set(names)


def test_command_prints_no_control_characters(tmp_path):
    np.save(tmp_path / "a.npy", make_vectors())
    Prototypes.from_vectors(make_vectors(2), ["\x1b[31mred", "b"]).save(tmp_path / "p.safetensors")
    arguments = [str(tmp_path), "--concepts", str(tmp_path / "\x1b[31m.txt"), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["curate", *arguments], color=False)
    assert result.exit_code == 1
    assert "\\x1b[31m.txt" in result.output


def test_figures_are_written_whole_or_not_at_all(tmp_path):
    from freezealign.figures import new_figure, save_figure

    figure = new_figure(1, 1)
    (tmp_path / "a.png").write_bytes(b"old")
    figure.savefig = lambda file, **_: file.write(b"half") and pytest.fail("killed")
    with pytest.raises(pytest.fail.Exception, match="killed"):
        save_figure(figure, tmp_path / "a.png", 50)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"old")]


@pytest.mark.skipif(os.name == "nt", reason="there is no umask")
def test_files_follow_the_umask(tmp_path):
    make_store(make_vectors(40)).save(tmp_path / "store")
    shards = find_shards(write_shards(tmp_path / "shards"))
    before = os.umask(0o027)
    try:
        found = curate(open_pool(tmp_path / "store"), make_prototypes(), tmp_path / "out", per_concept=4, **QUIET)
        write_subset(shards, ["pair-1"], tmp_path / "out" / "subset", **QUIET)
    finally:
        os.umask(before)
    assert found.ids
    modes = {(path.is_dir(), oct(path.stat().st_mode & 0o777)) for path in (tmp_path / "out").rglob("*")}
    assert modes == {(True, "0o750"), (False, "0o640")}


def test_command_stops_at_a_bad_row_if_it_is_strict(tmp_path):
    vectors = make_vectors(12)
    vectors[7] = np.nan
    np.save(tmp_path / "a.npy", vectors)
    make_prototypes().save(tmp_path / "p.safetensors")
    arguments = [
        "curate",
        str(tmp_path),
        "--concepts",
        str(tmp_path / "p.safetensors"),
        "--output",
        str(tmp_path / "o"),
    ]
    strict, lenient = (CliRunner().invoke(app, [*arguments, *more]) for more in (["--strict"], []))
    assert (strict.exit_code, lenient.exit_code) == (1, 0)
    assert f"1 rows cannot be used, row 7: {VECTOR}" in strict.output
    assert "11 of 12 pairs, 1 skipped" in lenient.output
