"""Sources: every form of paired data gives the same pairs, again and again, and hides no damage."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from freezealign import FreezeAlign
from freezealign.data.pairs import iterate_pairs
from freezealign.data.sources import open_pairs
from freezealign.images import read_image
from freezealign.inputs import InputError

FORMS = r"a folder of pictures with captions, a \.csv"
same_folder = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture(red: int) -> bytes:
    """A picture that is known again by its red channel; a PNG, whatever the name of its file."""
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(content, "PNG")
    return content.getvalue()


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_table(folder: Path, suffix: str, rows: list[dict]) -> Path:
    path, names = folder / f"table{suffix}", list(rows[0])
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
        return path
    text = io.StringIO(newline="")
    if suffix.startswith(".jsonl"):
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(text, names, delimiter="\t" if suffix.startswith(".tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    return path


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def sample(key: str, red: int, caption: str | None) -> dict[str, bytes]:
    """What img2dataset writes of one row: it leaves out the .txt where there is no caption."""
    meta = json.dumps({"caption": caption, "url": "http://x/y.jpg", "key": key, "status": "success"})
    text = {} if caption is None else {f"{key}.txt": caption.encode()}
    return {f"{key}.jpg": picture(red), f"{key}.json": meta.encode(), **text}


def write_img2dataset(folder: Path, shards: int = 3, samples: int = 2) -> Path:
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for index in range(samples):
            members |= sample(f"{shard:05d}{index:04d}", 10 * shard + index, f"caption {shard} {index}")
        write_shard(folder / f"{shard:05d}.tar", members)
        pq.write_table(pa.table({"url": ["http://x"], "caption": ["no"]}), folder / f"{shard:05d}.parquet")
        write(folder / f"{shard:05d}_stats.json", "{}")
    return folder


def make_folder(root: Path) -> Path:
    """Four pictures in three folders: several captions, one caption, none, and none that is not blank."""
    for name in ("b/two.PNG", "a.jpg", "b/c/one.png", "z.png"):
        write(root / name, picture(9))
    write(root / "a.txt", "\ufeffein Äpfelchen\r\n\r\n  an apple \n")
    write(root / "b/c/one.txt", "one")
    write(root / "z.txt", "\n \n")
    write(root / "notes.md", "no picture")
    return root


def make_source(kind: str, folder: Path):
    """Seven pairs, or nearly so, of each kind."""
    folder.mkdir(exist_ok=True)
    rows = [{"image": f"{n}.png", "text": f"text {n}", "id": f"i{n}"} for n in range(7)]
    if kind == "folder":
        for row in rows:
            write(folder / row["image"], picture(1))
        return open_pairs(folder)
    if kind == "metadata":
        write(folder / "metadata.csv", "file_name,text\n" + "".join(f"{n}.png,x\n" for n in range(6)) + "a,b,c\n")
        return open_pairs(folder)
    if kind == "shards":
        write_img2dataset(folder)
        (folder / "00001.tar").write_bytes((folder / "00001.tar").read_bytes()[:3000])
        return open_pairs(folder)
    if kind == "parquets":
        pq.write_table(pa.Table.from_pylist(rows[:3]), folder / "a.parquet", row_group_size=2)
        pq.write_table(pa.Table.from_pylist(rows[3:]), folder / "b.parquet", row_group_size=3)
        return open_pairs(folder)
    return open_pairs(write_table(folder, kind, rows))


KINDS = ["folder", "metadata", "shards", "parquets", ".csv", ".tsv.gz", ".jsonl"]


def shown(pairs) -> list[tuple]:
    """Pairs as what can be compared: an image that raises as the reason it gives."""
    return [(pair["id"], reason(pair) if callable(pair["image"]) else pair["image"], pair["text"]) for pair in pairs]


def reason(pair) -> str:
    with pytest.raises(InputError) as error:
        read_image(pair["image"])
    return str(error.value)


def red(pair) -> int:
    return int(np.asarray(read_image(pair["image"]))[0, 0, 0])


def texts(pairs) -> list:
    return [pair["text"] for pair in pairs]


def ids(pairs) -> list[str]:
    return [pair["id"] for pair in pairs]


# What all have in common


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_starts_anew_and_is_read_from_any_position(kind, tmp_path):
    source = make_source(kind, tmp_path / "data")
    everything = shown(source)
    assert len(everything) >= 6 and len({name for name, *_ in everything}) == len(everything)
    assert shown(source) == everything
    for position in range(len(everything) + 2):
        assert shown(source.iter_from(position)) == everything[position:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_position_is_refused_at_once(kind, tmp_path):
    with pytest.raises(ValueError, match="got -1"):
        make_source(kind, tmp_path / "data").iter_from(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_length_is_known_where_that_is_cheap(kind, tmp_path):
    source = make_source(kind, tmp_path / "data")
    assert hasattr(source, "__len__") == (kind in ("folder", "metadata", "parquets"))
    assert not hasattr(source, "__len__") or len(source) == len(list(source))


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_is_one_pair_to_the_extractor(kind, tmp_path):
    source = make_source(kind, tmp_path / "data")
    pairs = list(iterate_pairs(source, ["image", "text"]))
    assert len(pairs) == len(list(source)) and all(len(pair.items["image"]) == 1 for pair in pairs)


def test_two_readers_of_one_source_do_not_disturb_each_other(tmp_path):
    source = open_pairs(write_img2dataset(tmp_path))
    assert [(one["id"], red(one)) for one, other in zip(source, source) if one == other] == list(
        zip(ids(source), map(red, source))
    )


def test_importing_the_sources_loads_nothing_heavy():
    heavy = "torch", "numpy", "PIL", "pandas", "pyarrow", "webdataset", "datasets"
    code = f"import sys, freezealign.data.sources; sys.exit(str([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


# A folder of pictures


def test_a_folder_gives_its_pictures_by_path_with_a_caption_a_line(tmp_path):
    source = open_pairs(make_folder(tmp_path))
    assert [(pair["id"], pair["text"]) for pair in source] == [
        ("a.jpg", ["ein Äpfelchen", "an apple"]),
        ("b/c/one.png", ["one"]),
        ("b/two.PNG", []),
        ("z.png", []),
    ]
    assert [pair["image"] for pair in source][1] == tmp_path / "b/c/one.png"
    assert list(map(red, source)) == [9] * 4


def test_captions_that_are_not_utf8_make_their_pair_unreadable(tmp_path):
    write(make_folder(tmp_path) / "a.txt", "Äpfel".encode("latin-1"))
    pairs = list(open_pairs(tmp_path))
    assert "a.jpg" in reason(pairs[0]) and "utf-8" in reason(pairs[0])
    assert len(pairs) == 4 and pairs[1]["text"] == ["one"]


@pytest.mark.parametrize("name", ["metadata.csv", "captions.csv", "metadata.jsonl", "captions.jsonl"])
@pytest.mark.parametrize("column", ["file_name", "image"])
def test_a_table_in_the_folder_holds_the_captions(name, column, tmp_path):
    make_folder(tmp_path)
    rows = [("./b/two.PNG", "second"), ("a.jpg", "x"), ("gone.png", "y"), ("b/two.PNG", "zwei"), ("z.png", "")]
    rows = [{column: file, "text": text} for file, text in rows]
    write_table(tmp_path, Path(name).suffix, rows).rename(tmp_path / name)
    pairs = list(open_pairs(tmp_path))
    assert [(pair["id"], pair["text"]) for pair in pairs] == [
        ("a.jpg", ["x"]),
        ("b/c/one.png", []),
        ("b/two.PNG", ["second", "zwei"]),
        ("gone.png", ["y"]),
        ("z.png", []),
    ]
    with pytest.raises(InputError, match=r"no such image file: .*gone\.png"):
        read_image(pairs[3]["image"])


def test_a_table_in_the_folder_may_hold_lists_nulls_and_addresses(tmp_path):
    lines = [
        {"file_name": "a.jpg", "text": ["one", None, "two"]},
        {"file_name": "https://x.org/p.jpg", "text": "far"},
        {"file_name": None, "text": "nobody"},
        {"file_name": "z.png", "text": None},
    ]
    write(make_folder(tmp_path) / "metadata.jsonl", "\n".join(map(json.dumps, lines)) + "\n{\n")
    pairs = list(open_pairs(tmp_path))
    assert pairs[0]["text"] == ["one", "two"] and pairs[4]["text"] == []
    assert pairs[3] == {"id": "https://x.org/p.jpg", "image": "https://x.org/p.jpg", "text": ["far"]}
    assert ids(pairs[5:]) == ["metadata.jsonl, row 2", "metadata.jsonl, row 4"]
    assert "'file_name' names no file: None" in reason(pairs[5]) and "line 5 is not JSON" in reason(pairs[6])


def test_the_columns_of_a_table_in_the_folder_can_be_chosen(tmp_path):
    write(make_folder(tmp_path) / "metadata.csv", "file_name,path,de\nz.png,a.jpg,Apfel\n")
    assert next(iter(open_pairs(tmp_path, image="path", text="de"))) == {
        "id": "a.jpg",
        "image": tmp_path / "a.jpg",
        "text": ["Apfel"],
    }
    with pytest.raises(ValueError, match=r"no column 'text'; the columns are \['file_name', 'path', 'de'\].*text='…'"):
        open_pairs(tmp_path)
    with pytest.raises(ValueError, match="id='de'"):
        open_pairs(tmp_path, text="de", id="de")


def test_two_tables_in_a_folder_are_refused(tmp_path):
    for name in ("metadata.csv", "captions.jsonl"):
        write(tmp_path / name, "file_name,text\n")
    with pytest.raises(ValueError, match=r"\['metadata.csv', 'captions.jsonl'\]; leave one"):
        open_pairs(tmp_path)


@pytest.mark.parametrize("keyword", ["image", "text", "id"])
def test_a_folder_without_a_table_has_no_columns_to_choose(keyword, tmp_path):
    with pytest.raises(ValueError, match=f"no column to choose with {keyword}='x'"):
        open_pairs(make_folder(tmp_path), **{keyword: "x"})


# Tables


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
        {"id": "2", "image": None, "text": []},
        {"id": "0", "image": tmp_path / "a.png", "text": []},
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


def test_several_images_in_a_row_are_no_batch_of_pairs(tmp_path):
    rows = [{"image": ["a.png", "b.png"], "text": ["x", "y"], "id": "i"}]
    (pair,) = open_pairs(write_table(tmp_path, ".jsonl", rows))
    assert "expected one image, got ['a.png', 'b.png']" in reason(pair) and pair["id"] == "i"
    assert len(list(iterate_pairs([pair], ["image", "text"]))) == 1


def test_csv_from_a_spreadsheet_has_a_bom_crlf_blank_lines_and_line_breaks_in_cells(tmp_path):
    path = write(tmp_path / "t.csv", '\ufeffimage,text\r\na.png,ä\r\n\r\nb.png,"two\nlines, and a ""quote"""\r\n')
    assert texts(open_pairs(path)) == ["ä", 'two\nlines, and a "quote"']


def test_a_csv_row_with_a_bare_separator_is_not_cut(tmp_path):
    path = write(tmp_path / "t.csv", "image,text\na.png,red, round\nb.png\nc.png,fine\n")
    first, second, third = open_pairs(path)
    assert "line 2 has 3 cells, the header 2; put quotation marks" in reason(first)
    assert "line 3 has 1 cells" in reason(second) and third["text"] == "fine"
    assert ids([first, second, third]) == ["0", "1", "2"]


def test_a_quotation_mark_that_is_never_closed_is_reported(tmp_path):
    first, second = open_pairs(write(tmp_path / "t.csv", 'image,text\na.png,fine\nb.png,"open\nc.png,swallowed\n'))
    assert first["text"] == "fine" and "is a quotation mark missing" in reason(second)


def test_a_cell_too_long_for_csv_does_not_end_the_table(tmp_path):
    path = write(tmp_path / "t.csv", f"image,text\na.png,{'x' * (csv.field_size_limit() + 1)}\nb.png,fine\n")
    first, second = open_pairs(path)
    assert "line 2: field larger than field limit" in reason(first) and second["text"] == "fine"


@pytest.mark.parametrize("line", ["{", '"a string"', "[" * 100_000, "nope"])
def test_a_line_that_is_no_json_object_keeps_its_place(line, tmp_path):
    good = json.dumps({"image": "a.png", "text": "x"})
    pairs = list(open_pairs(write(tmp_path / "t.jsonl", f"{good}\n\n{line}\n{good}\n")))
    assert ids(pairs) == ["0", "1", "2"] and texts(pairs)[::2] == ["x", "x"]
    assert reason(pairs[1]).startswith("line 3 is not")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"image,text\na.png,\xc4pfel\nb.png,fine\n"),
        ("t.jsonl", b'{"image": "a.png", "text": "\xc4pfel"}\n{"image": "b.png", "text": "fine"}\n'),
        ("t.jsonl", b'{"image": "a.png", "text": ["x", "\\ud83c"]}\n{"image": "b.png", "text": "fine"}\n'),
    ],
)
def test_a_text_that_is_not_unicode_makes_its_pair_unreadable(name, content, tmp_path):
    first, second = open_pairs(write(tmp_path / name, content))
    assert "the text is not UTF-8" in reason(first) and second["text"] == "fine"


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


@pytest.mark.parametrize(("name", "content"), [("t.csv", ""), ("t.jsonl", ""), ("t.csv", "image,text\n")])
def test_a_table_without_rows_is_refused(name, content, tmp_path):
    with pytest.raises(ValueError, match=rf"{name}: there is no row that can be read; it is empty"):
        open_pairs(write(tmp_path / name, content))


def test_a_table_of_bad_rows_only_gives_the_reason(tmp_path):
    with pytest.raises(ValueError, match="no row that can be read; line 1 is not a JSON object"):
        open_pairs(write(tmp_path / "t.jsonl", "[]"))


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


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"t\.parquet: not a readable Parquet file"):
        open_pairs(write(tmp_path / "t.parquet", "no"))


def test_every_file_of_a_folder_of_parquet_is_checked_before_any_is_read(tmp_path):
    make_source("parquets", tmp_path)
    pq.write_table(pa.table({"image": ["a"], "caption": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet: there is no column 'text'"):
        open_pairs(tmp_path)
    assert ids(open_pairs(tmp_path / "[ab].parquet")) == [f"i{n}" for n in range(7)]


# Shards


@pytest.mark.parametrize("form", ["", "*.tar", "0000[0-2].tar", "{00000..00002}.tar"])
def test_shards_as_img2dataset_writes_them(form, tmp_path):
    source = open_pairs(write_img2dataset(tmp_path) / form)
    assert [(pair["id"], pair["text"], red(pair)) for pair in source] == [
        (f"{shard:05d}{index:04d}", f"caption {shard} {index}", 10 * shard + index)
        for shard in range(3)
        for index in range(2)
    ]
    assert all(isinstance(pair["image"], bytes) for pair in source)


def test_one_shard_and_braces_in_their_own_order(tmp_path, monkeypatch):
    write_img2dataset(tmp_path)
    assert texts(open_pairs(tmp_path / "00001.tar")) == ["caption 1 0", "caption 1 1"]
    monkeypatch.chdir(tmp_path)
    assert texts(open_pairs("{00002,00000}.tar"))[::2] == ["caption 2 0", "caption 0 0"]


def test_the_text_of_a_sample_comes_from_txt_else_from_json(tmp_path):
    def meta(**fields) -> bytes:
        return json.dumps(fields).encode()

    path = write_shard(
        tmp_path / "a.tar",
        {
            **{"0.png": b"0", "0.txt": "\ufeffä\n".encode(), "0.json": meta(text="no")},
            **{"1.PNG": b"1", "1.json": meta(text="text", caption="no")},
            **{"2.webp": b"2", "2.json": meta(caption="caption")},
            **{"3.jpg": b"3", "3.json": meta(caption=None)},
            "4.jpg": b"4",
            **{"5.txt": b"no picture", "5.cls": b"1"},
            **{"sub/6.jpg": b"6", "sub/6.txt": b"six", "sub/6.seg.png": b"no"},
            **{"7.json": meta(text=["a", "b"]), "7.jpg": b"7"},
        },
    )
    assert [tuple(pair.values()) for pair in open_pairs(path)] == [
        ("0", b"0", "ä"),
        ("1", b"1", "text"),
        ("2", b"2", "caption"),
        ("3", b"3", []),
        ("4", b"4", []),
        ("5", None, "no picture"),
        ("sub/6", b"6", "six"),
        ("7", b"7", ["a", "b"]),
    ]


def test_a_text_of_the_json_can_be_chosen_and_a_wrong_choice_is_explained(tmp_path):
    write_shard(tmp_path / "a.tar", sample("0", 1, "x") | {"0.json": b'{"alt": "y"}'} | sample("1", 1, "x"))
    chosen, missing = open_pairs(tmp_path, text="alt")
    assert chosen["text"] == "y"
    assert "no 'alt' in its .json, which has ['caption', 'url', 'key', 'status']" in reason(missing)


@pytest.mark.parametrize("keyword", ["image", "id"])
def test_shards_have_no_column_of_images_or_ids(keyword, tmp_path):
    with pytest.raises(ValueError, match=f"no column to choose with {keyword}='x'"):
        open_pairs(write_img2dataset(tmp_path), **{keyword: "x"})


def test_nothing_in_a_shard_is_unpickled(tmp_path):
    mark = tmp_path / "mark"
    pickled = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    members = {f"0.{suffix}": pickled for suffix in ("pyd", "pickle", "pkl", "pth", "jpg", "txt", "json")}
    (pair,) = open_pairs(write_shard(tmp_path / "a.tar", members))
    assert pair["image"] == pickled and not mark.exists()


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_bad_json_makes_only_its_sample_unreadable(content, tmp_path):
    write_shard(tmp_path / "a.tar", {"0.jpg": b"", "0.json": content, "1.jpg": b"1", "1.txt": b"one"})
    first, second = open_pairs(tmp_path)
    assert "cannot read '0'" in reason(first) and second["text"] == "one"


def test_a_shard_cut_off_gives_its_readable_samples_and_says_what_is_lost(tmp_path):
    write_img2dataset(tmp_path, samples=4)
    path = tmp_path / "00001.tar"
    with tarfile.open(path) as archive:
        cut = archive.getmember("000010002.jpg").offset_data + 30
    path.write_bytes(path.read_bytes()[:cut])
    pairs = list(open_pairs(tmp_path))
    assert ids(pairs)[4:9] == ["000010000", "000010001", "000010002", "00001.tar", "000020000"]
    assert texts(pairs)[5] == "caption 1 1" and red(pairs[5]) == 11
    assert "'000010002.jpg' is cut off" in reason(pairs[6])
    assert "cannot read all of" in reason(pairs[7]) and "what follows is lost" in reason(pairs[7])
    assert len(pairs) == 4 + 4 + 4


@pytest.mark.parametrize("damage", ["header", "boundary", "truncated header", "no end", "appended", "empty", "not tar"])
def test_damage_that_tarfile_passes_over_is_reported(damage, tmp_path):
    path = write_shard(tmp_path / "a.tar", sample("0", 1, "x") | sample("1", 2, "y"))
    with tarfile.open(path) as archive:
        second, last = (archive.getmember(name) for name in ("1.jpg", "1.txt"))
    content = path.read_bytes()
    damaged = {
        "header": content[: second.offset] + b"#" * 512 + content[second.offset + 512 :],
        "boundary": content[: second.offset],
        "truncated header": content[: second.offset + 100],
        "no end": content[: last.offset_data + 512],
        "appended": content + content,
        "empty": b"",
        "not tar": b"<html>" * 1000,
    }[damage]
    path.write_bytes(damaged)
    *whole, last = open_pairs(path)
    samples = {"empty": 0, "not tar": 0, "no end": 2, "appended": 2}.get(damage, 1)
    assert texts(whole) == ["x", "y"][:samples]
    assert last["id"] == "a.tar" and str(path) in reason(last)


def test_files_twice_in_a_sample_are_reported_once_and_the_rest_is_read(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("0.jpg", "0.jpg", "0.txt", "0.TXT", "1.jpg", "1.txt"):
            header = tarfile.TarInfo(name)
            header.size = 1
            archive.addfile(header, io.BytesIO(str(archive.offset // 1024).encode()))
    first, second, note = open_pairs(path)
    assert [tuple(pair.values()) for pair in (first, second)] == [("0", b"0", "2"), ("1", b"4", "5")]
    assert "0.jpg: duplicate file name" in reason(note) and "0.TXT: duplicate file name" in reason(note)


def test_a_shard_that_cannot_be_opened_does_not_end_the_run(tmp_path):
    source = open_pairs(write_img2dataset(tmp_path))
    (tmp_path / "00001.tar").unlink()
    pairs = list(source)
    assert ids(pairs)[2] == "00001.tar" and "No such file" in reason(pairs[2]) and len(pairs) == 5


@same_folder
@given(data=st.data())
def test_random_damage_to_a_shard_never_ends_a_run_and_never_passes_unseen(data, tmp_path):
    whole = write_shard(tmp_path / "a.tar", sample("0", 1, "x") | sample("1", 2, "y") | sample("2", 3, "z"))
    content, position = whole.read_bytes(), data.draw(st.integers(0, 5000))
    garbage = data.draw(st.binary(min_size=0, max_size=600))
    broken = write(tmp_path / "broken/b.tar", content[:position] + garbage)
    pairs = shown(open_pairs(broken))
    assert pairs[-1][0] == "b.tar"
    for number in range(len(pairs)):
        assert shown(open_pairs(broken).iter_from(number)) == pairs[number:]
    with tarfile.open(whole) as archive:
        ends = [archive.getmember(f"{key}.txt").offset_data + 512 for key in "012"]
    safe = sum(end <= position for end in ends)
    assert pairs[:safe] == shown(open_pairs(whole))[:safe]


def test_leaving_samples_out_does_not_read_their_pictures(tmp_path, monkeypatch):
    from freezealign.data.sources import shards

    read = []
    content = shards._content
    monkeypatch.setattr(shards, "_content", lambda file, header: read.append(header.name) or content(file, header))
    assert ids(open_pairs(write_img2dataset(tmp_path)).iter_from(5)) == ["000020001"]
    assert read == ["000020001.jpg", "000020001.txt"]


@pytest.mark.parametrize("form", ["", "{0..1}.tar"])
def test_without_webdataset_the_command_that_installs_it_is_given(form, tmp_path, monkeypatch):
    write_img2dataset(tmp_path)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'freezealign\[web\]'"):
        open_pairs(tmp_path / form)


def test_without_pyarrow_the_command_that_installs_it_is_given(tmp_path, monkeypatch):
    make_source("parquets", tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError, match="freezealign\\[web\\]"):
        open_pairs(tmp_path)


# Which source a path is


def test_a_folder_is_read_as_the_first_form_that_it_holds(tmp_path):
    pq.write_table(pa.table({"image": ["p"], "text": ["parquet"]}), tmp_path / "a.parquet")
    assert texts(open_pairs(tmp_path)) == ["parquet"]
    write(tmp_path / "sub/a.png", picture(1))
    assert texts(open_pairs(tmp_path)) == [[]]
    write(tmp_path / "metadata.csv", "file_name,text\nsub/a.png,table\n")
    assert texts(open_pairs(tmp_path)) == [["table"]]
    write_shard(tmp_path / "0.tar", sample("0", 1, "shard"))
    assert texts(open_pairs(tmp_path)) == ["shard"]


@pytest.mark.parametrize(
    "name", ["gone", "gone.csv", "*.tar", "https://x.org/{0..1}/a.tar", "user/dataset", "x" * 9999]
)
def test_a_path_that_is_none_is_refused_with_what_is_taken(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone|tar|user|xxx") as error:
        open_pairs(name if "/" in name else str(tmp_path / name))
    assert "https" in name or "a folder of pictures with captions, a .csv" in str(error.value)


def test_missing_shards_of_a_pattern_are_counted(tmp_path):
    write_img2dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"\.\.00005\}\.tar': 3 of 6 files are missing, .*00003\.tar"):
        open_pairs(tmp_path / "{00000..00005}.tar")


def test_a_folder_with_nothing_to_read_is_refused(tmp_path):
    write(tmp_path / "readme.md", "x")
    with pytest.raises(FileNotFoundError, match=rf"nothing to read in the folder '{tmp_path}'.*{FORMS}"):
        open_pairs(tmp_path)


@pytest.mark.parametrize("name", ["t.xlsx", "t.tar.gz", "t.parquet.gz", "t", "t.png"])
def test_an_unknown_suffix_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=rf"cannot read pairs from \['.*{name}'\].*{FORMS}"):
        open_pairs(write(tmp_path / name, "x"))


def test_a_pattern_of_several_kinds_is_refused(tmp_path):
    write_img2dataset(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read pairs from .*00000\.parquet.*00000\.tar"):
        open_pairs(tmp_path / "00000.*[rt]")


# Objects


class Stream:
    """An iterable without positions."""

    def __init__(self, elements):
        self.elements = elements

    def __iter__(self):
        return iter(self.elements)


ROWS = [{"bild": n, "wort": f"t{n}", "text": "no", "nr": n, "image": None} for n in range(3)]
RENAMED = [{"image": n, "text": f"t{n}", "id": n} for n in range(3)]


def test_objects_are_returned_as_they_are():
    for data in ([("a", "b")], Stream([]), DataLoader([1, 2]), iter([])):
        assert open_pairs(data) is data


@pytest.mark.parametrize("make", [list, tuple, Stream, lambda rows: DataLoader(rows, batch_size=None)])
def test_columns_of_objects_are_renamed(make):
    data = open_pairs(make(ROWS), image="bild", text="wort", id="nr")
    for _ in range(2):
        assert [dict(row) for row in data] == RENAMED
    if make in (list, tuple):
        assert len(data) == 3 and data[2] == RENAMED[2]


def test_columns_change_places_and_tuples_stay():
    swapped, pair = open_pairs([{"image": "t", "text": "i"}, ("i", "t")], image="text", text="image")
    assert swapped == {"image": "i", "text": "t"} and pair == ("i", "t")


def test_batches_of_a_loader_are_renamed():
    loader = DataLoader([{"bild": torch.zeros(3, 2, 2), "text": "x"}] * 4, batch_size=2)
    pairs = list(iterate_pairs(open_pairs(loader, image="bild"), ["image", "text"]))
    assert len(pairs) == 4 and pairs[0].items["text"] == ["x"]


@pytest.mark.parametrize("streamed", [False, True])
def test_columns_of_datasets_are_renamed(streamed):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data = data.to_iterable_dataset() if streamed else data
    assert open_pairs(data) is data
    assert [dict(row) for row in open_pairs(data, image="bild", text="wort", id="nr")] == RENAMED
    with pytest.raises(ValueError, match="the data set: there is no column 'word'; the columns are"):
        open_pairs(data, text="word")


def test_columns_of_a_generated_stream_are_renamed_without_being_known():
    datasets = pytest.importorskip("datasets")
    rows = [{"bild": row["bild"], "text": row["wort"]} for row in ROWS]
    data = datasets.IterableDataset.from_generator(Stream(rows).__iter__)
    assert data.column_names is None
    assert [row["image"] for row in open_pairs(data, image="bild")] == [0, 1, 2]


def test_a_dict_of_data_sets_is_refused():
    with pytest.raises(TypeError, match=r"pass one of its values: \['train', 'test'\]"):
        open_pairs({"train": [], "test": []})


def test_what_holds_no_pairs_is_refused():
    with pytest.raises(TypeError, match="not from int"):
        open_pairs(5)


# In the extractor


def test_the_extractor_lists_what_it_skips_with_the_reasons(tmp_path, dinov2_folder, bert_folder):
    members = sample("0", 1, "a red apple") | sample("1", 2, None) | {"2.txt": b"a car"} | sample("3", 3, "a dog")
    path = write_shard(tmp_path / "a.tar", members)
    path.write_bytes(path.read_bytes().rstrip(b"\0"))
    model = FreezeAlign({"text": bert_folder, "image": dinov2_folder}, dim=16, seed=0, device="cpu")
    store = model.extract_features(open_pairs(path), show_progress_bar=False)
    assert [(entry.index, entry.reason[:28]) for entry in store.skipped] == [
        (1, "there is no text."),
        (2, "got None where image was exp"),
        (4, f"cannot read all of {path}: "[:28]),
    ]
    assert len(store) == 2
