"""Tables: CSV, TSV, JSON lines and Parquet give their rows, and hide no bad one."""

from __future__ import annotations

import csv
import gzip
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written import ids, make_source, picture, reason, red, shown, texts, write, write_table

from freezealign.data.pairs import as_pair, iterate_pairs
from freezealign.data.sources import open_pairs
from freezealign.modality import read_items, read_text


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".parquet"])
def test_a_table_gives_its_rows(suffix, tmp_path):
    absolute = str(tmp_path / "elsewhere.png")
    rows = [
        {"key": "k0", "bild": "sub/0.png", "wort": 'a, "b"\tc', "rest": 1},
        {"key": "k1", "bild": absolute, "wort": "ein Äpfelchen 🍎", "rest": 2},
        {"key": "k2", "bild": "https://x.org/a.jpg?b=c d".replace(" ", "%20"), "wort": "x", "rest": 3},
    ]
    path = write_table(tmp_path, suffix, rows)
    expected = [
        {"id": "k0", "image": tmp_path / "sub/0.png", "text": rows[0]["wort"]},
        {"id": "k1", "image": Path(absolute), "text": rows[1]["wort"]},
        {"id": "k2", "image": rows[2]["bild"], "text": "x"},
    ]
    for source in (path, str(path)):
        assert list(open_pairs(source, image="bild", text="wort", id="key")) == expected
    assert ids(open_pairs(path, image="bild", text="wort")) == ["0", "1", "2"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(("missing", "keyword"), [("image", "image"), ("text", "text"), ("nr", "id")])
def test_a_missing_column_is_named_with_those_there_are(suffix, missing, keyword, tmp_path):
    rows = [{name: "x" for name in ("image", "text", "other") if name != missing}]
    path = write_table(tmp_path, suffix, rows)
    with pytest.raises(ValueError) as error:
        open_pairs(path, id="nr" if keyword == "id" else "id")
    assert f"no column '{missing}'; the columns are {list(rows[0])}" in str(error.value)
    assert f"{keyword}='…'" in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rows_without_an_image_text_or_id_keep_their_place(suffix, tmp_path):
    rows = [
        {"image": "a.png", "text": "x", "id": "one"},
        {"image": None, "text": "x", "id": None},
        {"image": "", "text": None, "id": ""},
        {"image": "a.png", "text": "", "id": "0"},
    ]
    assert list(open_pairs(write_table(tmp_path, suffix, rows))) == [
        {"id": "one", "image": tmp_path / "a.png", "text": "x"},
        {"id": "1", "image": None, "text": "x"},
        {"id": "2", "image": None, "text": "" if suffix == ".csv" else None},
        {"id": "0", "image": tmp_path / "a.png", "text": ""},
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_table_may_hold_lists_of_texts_numbers_as_ids_and_images_as_datasets_stores_them(suffix, tmp_path):
    rows = [
        {"image": {"bytes": None, "path": "a.png"}, "text": ["x", "y"], "id": 0},
        {"image": {"bytes": None, "path": "https://x.org/a.jpg"}, "text": [], "id": 7},
    ]
    assert list(open_pairs(write_table(tmp_path, suffix, rows))) == [
        {"id": "0", "image": tmp_path / "a.png", "text": ["x", "y"]},
        {"id": "7", "image": "https://x.org/a.jpg", "text": []},
    ]


@pytest.mark.parametrize("wrap", [lambda content: content, lambda content: {"bytes": content, "path": "gone.png"}])
def test_parquet_may_hold_the_pictures_themselves(wrap, tmp_path):
    path = write_table(tmp_path, ".parquet", [{"image": wrap(picture(n)), "text": "x"} for n in range(5)])
    assert list(map(red, open_pairs(path))) == [0, 1, 2, 3, 4]


def test_csv_from_a_spreadsheet_has_a_bom_crlf_blank_lines_and_line_breaks_in_cells(tmp_path):
    path = write(tmp_path / "t.csv", '\ufeffimage,text\r\na.png,ä\r\n\r\nb.png,"two\nlines, and a ""quote"""\r\n')
    assert texts(open_pairs(path)) == ["ä", 'two\nlines, and a "quote"']


GOOD_CSV, GOOD_JSON = "b.png,fine\n", '{"image": "b.png", "text": "fine"}\n'
BAD_ROWS = {
    "too many cells": (".csv", "a.png,red, round\n", "line 2 has 3 cells, the header 2; put quotation marks"),
    "too few cells": (".csv", "a.png\n", "line 2 has 1 cells"),
    "a cell too long": (
        ".csv",
        f"a.png,{'x' * (csv.field_size_limit() + 1)}\n",
        "line 2: field larger than field limit",
    ),
    "Latin 1": (".csv", b"a.png,\xc4pfel\n", "the text is not UTF-8"),
    "half an object": (".jsonl", "\n{\n", "line 2 is not JSON"),
    "a word": (".jsonl", "nope\n", "line 1 is not JSON"),
    "deep nesting": (".jsonl", "[" * 100_000 + "\n", "line 1 is not JSON"),
    "a string": (".jsonl", '"a string"\n', "line 1 is not a JSON object"),
    "Latin 1 in JSON": (".jsonl", b'{"image": "a.png", "text": "\xc4pfel"}\n', "the text is not UTF-8"),
    "half a character": (".jsonl", '{"image": "a.png", "text": ["x", "\\ud83c"]}\n', "the text is not UTF-8"),
    "two images": (
        ".jsonl",
        '{"image": ["a.png", "b.png"], "text": ["x", "y"]}\n',
        r"expected one image, got \['a.png', 'b",
    ),
}
"""From what is wrong to a table's suffix, its bad row, and the reason that is given."""


@pytest.mark.parametrize("wrong", BAD_ROWS)
def test_a_bad_row_keeps_its_place_and_says_why(wrong, tmp_path):
    suffix, row, why = BAD_ROWS[wrong]
    row, good = row if isinstance(row, bytes) else row.encode(), GOOD_CSV if suffix == ".csv" else GOOD_JSON
    header = b"image,text\n" if suffix == ".csv" else b""
    pairs = list(open_pairs(write(tmp_path / f"t{suffix}", header + row + good.encode())))
    assert ids(pairs) == ["0", "1"] and pairs[1]["text"] == "fine"
    if "UTF-8" in why:
        _, bad = read_items(as_pair(pairs[0], ["text"]).items["text"], read_text)
        assert len(bad) == 1 and all(re.match(why, told) for told in bad.values())
    else:
        assert re.match(why, reason(pairs[0]))
    assert len(list(iterate_pairs(pairs, ["image", "text"]))) == 2


def test_a_quotation_mark_that_is_never_closed_swallows_no_row_in_silence(tmp_path):
    table = 'image,text\na.png,fine\nb.png,"open\nc.png,swallowed\n\nd.png,"x ""y"""\ne.png,"open\nf.png,last\n'
    pairs = list(open_pairs(write(tmp_path / "t.csv", table)))
    assert [pair["text"] for pair in pairs if not callable(pair["image"])] == ["fine", "swallowed", 'x "y"', "last"]
    assert [number for number, pair in enumerate(pairs) if callable(pair["image"])] == [1, 4]
    assert reason(pairs[1]).startswith("line 3: ") and reason(pairs[4]).startswith("line 7: ")
    assert "is a quotation mark missing" in reason(pairs[1])


def test_a_picture_is_found_by_a_name_that_is_not_utf8(tmp_path):
    name = os.fsdecode(b"\xc4pfel.png")
    write(tmp_path / name, picture(5))
    write(tmp_path / "t.csv", b"image,text,id\n\xc4pfel.png,x,\xc4\n")
    (row,), (file,) = open_pairs(tmp_path / "t.csv"), open_pairs(tmp_path)
    assert red(row) == red(file) == 5
    assert (row["id"], file["id"]) == ("\\udcc4", "\\udcc4pfel.png")


def test_a_truncated_gz_gives_what_can_be_read_and_says_so(tmp_path):
    lines = "".join(f"{n}.png,{os.urandom(40).hex()}\n" for n in range(2000))
    content = gzip.compress(f"image,text\n{lines}".encode())
    pairs = list(open_pairs(write(tmp_path / "t.csv.gz", content[: len(content) // 2])))
    assert len(pairs) > 500 and pairs[500]["image"] == tmp_path / "500.png"
    assert "the rest of" in reason(pairs[-1]) and "end-of-stream" in reason(pairs[-1])


def test_only_the_needed_columns_of_parquet_are_read(tmp_path, monkeypatch):
    path = write_table(tmp_path, ".parquet", [{"image": "a", "text": "x", "extra": 1, "id": "i"}])
    asked = []
    read = pq.ParquetFile.iter_batches

    def spy(self, *args, columns, **options):
        asked.append(sorted(columns))
        return read(self, *args, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    assert ids(open_pairs(path)) == ["i"] and asked == [["id", "image", "text"]]


def test_one_column_may_serve_twice(tmp_path):
    path = write_table(tmp_path, ".parquet", [{"file": "a.png", "text": "x"}])
    assert list(open_pairs(path, image="file", id="file")) == [
        {"id": "a.png", "image": tmp_path / "a.png", "text": "x"}
    ]


def test_row_groups_before_the_position_are_not_read(tmp_path, monkeypatch):
    source = make_source("parquets", tmp_path)
    groups = []
    read = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda self, *a, **o: groups.append(o["row_groups"]) or read(self, *a, **o)
    )
    assert ids(source.iter_from(5)) == ["i5", "i6"]
    assert groups == [[0], [1]]  # of the second file: rows 3 to 5, and row 6


def test_parquet_row_groups_longer_than_a_batch_are_read_whole_and_from_any_position(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": ["a"] * 700, "text": [f"t{n}" for n in range(700)]}), path)
    source = open_pairs(path)
    assert texts(source) == [f"t{n}" for n in range(700)]
    assert [next(source.iter_from(n))["text"] for n in (255, 256, 300, 699)] == ["t255", "t256", "t300", "t699"]


def test_damaged_parquet_rows_keep_their_places(tmp_path):
    path = tmp_path / "t.parquet"
    rows = [{"image": "a.png", "text": f"{n} " + "x" * 500} for n in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3, compression="gzip", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    content = bytearray(path.read_bytes())
    start = column.data_page_offset
    content[start + 40 : start + column.total_compressed_size] = b"\xff" * (column.total_compressed_size - 40)
    path.write_bytes(content)
    pairs = list(open_pairs(path))
    assert [callable(pair["image"]) for pair in pairs] == [False] * 3 + [True] * 3 + [False] * 3
    assert "row group 1 cannot be read" in reason(pairs[4]) and ids(pairs) == [str(n) for n in range(9)]
    assert shown(open_pairs(path).iter_from(4)) == shown(pairs)[4:]


def test_every_file_of_a_folder_of_parquet_is_checked_before_any_is_read(tmp_path):
    make_source("parquets", tmp_path)
    pq.write_table(pa.table({"image": ["a"], "caption": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet: there is no column 'text'"):
        open_pairs(tmp_path)
    assert ids(open_pairs(tmp_path / "[ab].parquet")) == [f"i{n}" for n in range(7)]


def test_a_page_of_parquet_whose_checksum_does_not_hold_is_told(tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table({"image": ["a.png"] * 3, "text": ["a green car"] * 3})
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, path, write_page_checksum=True, **options)
    assert texts(open_pairs(path)) == ["a green car"] * 3
    path.write_bytes(path.read_bytes().replace(b"a green car", b"a gremn car", 1))
    assert ["row group 0 cannot be read" in reason(pair) for pair in open_pairs(path)] == [True] * 3


def test_a_damaged_table_in_a_folder_costs_its_rows_and_not_the_pictures(tmp_path):
    rows = [{"file_name": f"{n}.png", "text": f"{n} " + "x" * 500} for n in range(6)]
    for row in rows:
        write(tmp_path / row["file_name"], picture(9))
    path = tmp_path / "metadata.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3, compression="none", write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace(b"1 xxx", b"1 xyx", 1))
    pairs = list(open_pairs(tmp_path))
    assert [len(pair["text"]) for pair in pairs[:6]] == [0, 0, 0, 1, 1, 1] and len(pairs) == 9
    assert "row group 0 cannot be read" in reason(pairs[8])
