"""One bad item costs itself: the good ones beside it stay, it is listed with its place, and the numbers add up."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from written import picture, reason, write, write_shard

from freezealign import FreezeAlign, FrozenEncoder, modality
from freezealign.data.pairs import as_pair
from freezealign.data.reader import PairReader
from freezealign.data.sources import open_pairs
from freezealign.encoders.callable import CallableEncoder
from freezealign.features.read import read_pair
from freezealign.inputs import InputError, skipped_pairs

LIMIT = 1000


@pytest.fixture(autouse=True)
def shorter_texts(monkeypatch):
    monkeypatch.setattr(modality, "TEXT_LIMIT", LIMIT)


def model() -> FreezeAlign:
    def pixels(items):
        return np.stack([np.asarray(item.resize((1, 1)), np.float32).reshape(-1) for item in items])

    def letters(items):
        return np.stack([np.array([len(item), 1], np.float32) for item in items])

    encoders = [FrozenEncoder(CallableEncoder(pixels, "image", 3)), FrozenEncoder(CallableEncoder(letters, "text", 2))]
    return FreezeAlign(encoders, dim=2, device="cpu")


def extracted(data, **options):
    return model().extract_features(data, level="pooled", batch_size=2, show_progress_bar=False, **options)


class Rows(Dataset):
    """A torch data set."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Seekable:
    """An iterable that can begin anywhere."""

    def __init__(self, rows):
        self.rows = rows

    def iter_from(self, position):
        return iter(self.rows[position:])

    def __iter__(self):
        return self.iter_from(0)


def pil_rows(captions) -> list[tuple]:
    return [(Image.new("RGB", (4, 4), (9, 9, 9)), list(own)) for own in captions]


def named_pictures(folder, captions) -> list[str]:
    return [write(folder / f"{number}.png", picture(9)).name for number in range(len(captions))]


def as_columns(folder, captions):
    images, texts = zip(*pil_rows(captions))
    return {"image": list(images), "text": list(texts)}


def as_pandas(folder, captions):
    import pandas

    return pandas.DataFrame(as_columns(folder, captions))


def as_datasets(folder, captions):
    from datasets import Dataset as Table

    return Table.from_dict({"image": named_paths(folder, captions), "text": [list(own) for own in captions]})


def named_paths(folder, captions) -> list[str]:
    return [str(folder / name) for name in named_pictures(folder, captions)]


def as_json_lines(folder, captions, name="t.jsonl", key="image"):
    rows = [{key: name, "text": own} for name, own in zip(named_pictures(folder, captions), captions)]
    return write(folder / name, "".join(json.dumps(row) + "\n" for row in rows).encode())


def as_parquet(folder, captions):
    lists = [[None if text is None else text.encode("utf-8", "surrogateescape") for text in own] for own in captions]
    texts = pa.array(lists, pa.list_(pa.binary()))
    texts = pa.ListArray.from_arrays(texts.offsets, pa.Array.from_buffers(pa.string(), *_parts(texts.values)))
    path = folder / "t.parquet"
    pq.write_table(pa.table({"image": named_pictures(folder, captions), "text": texts}), path, row_group_size=2)
    return path


def _parts(values):
    return len(values), values.buffers(), values.null_count


def as_text_files(folder, captions):
    for name, own in zip(named_pictures(folder, captions), captions):
        write((folder / name).with_suffix(".txt"), "\n".join(own).encode("utf-8", "surrogateescape"))
    return folder


def as_metadata(folder, captions):
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        writer.writerows([name, text] for name, own in zip(named_pictures(folder, captions), captions) for text in own)
    return folder


def as_json_metadata(folder, captions):
    return as_json_lines(folder, captions, "metadata.jsonl", "file_name").parent


def as_shards(folder, captions):
    for number, own in enumerate(captions):
        members = {f"{number}.jpg": picture(9), f"{number}.json": json.dumps({"caption": own}).encode()}
        write_shard(folder / f"{number}.tar", members)
    return folder


OBJECTS = {
    "list": lambda folder, captions: pil_rows(captions),
    "list of dicts": lambda folder, captions: [dict(zip(("image", "text"), row)) for row in pil_rows(captions)],
    "torch Dataset": lambda folder, captions: Rows(pil_rows(captions)),
    "iterable": lambda folder, captions: iter(
        [{"id": str(n), "image": i, "text": t} for n, (i, t) in enumerate(pil_rows(captions))]
    ),
    "seekable": lambda folder, captions: Seekable(
        [{"id": str(n), "image": i, "text": t} for n, (i, t) in enumerate(pil_rows(captions))]
    ),
    "DataLoader": lambda folder, captions: DataLoader(pil_rows(captions), batch_size=3, collate_fn=list),
    "columns": as_columns,
    "pandas": as_pandas,
}
JSON = {".jsonl": as_json_lines, "metadata.jsonl": as_json_metadata, "shards": as_shards}
STRINGS = {"metadata.csv": as_metadata, ".txt": as_text_files, ".parquet": as_parquet, "datasets": as_datasets}
SOURCES = {**OBJECTS, **JSON, **STRINGS}
BAD = {
    "null": (None, "got None where text was expected"),
    "number": (3, "expected a text, got 3"),
    "NaN": (float("nan"), "expected a text, got nan"),
    "list": (["a"], "expected a text, got ['a']"),
    "empty": ("", "the text is empty"),
    "blank": (" \t", "the text is empty"),
    "not UTF-8": ("\udcc4pfel", "the text is not UTF-8"),
    "too long": ("x" * (LIMIT + 1), "the text has 1,001 characters, at most 1,000 are read"),
}
CANNOT_HOLD = {
    ".parquet": {"number", "NaN", "list"},
    "datasets": {"number", "NaN", "list", "not UTF-8"},
    "metadata.csv": {"null", "number", "NaN", "list"},
    ".txt": {"null", "number", "NaN", "list", "empty", "blank"},  # a blank line is no caption
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("source", SOURCES)
def test_a_bad_caption_among_good_ones_costs_itself_alone(source, bad, tmp_path):
    if bad in CANNOT_HOLD.get(source, ()):
        pytest.skip("cannot hold it")
    caption, why = BAD[bad]
    captions = [["a", "b"], ["c", caption, "d"], [caption], ["e", "f"], ["g", "h"]]
    data = SOURCES[source](tmp_path, captions)
    store = extracted(data)
    kept = [n for n in range(5) if n != 2]
    assert len(store) == 4 and len(store.ids) == 4 and store["text"].captions(range(8)) == list("abcdefgh")
    (among, alone) = sorted(store.skipped, key=lambda entry: entry.index)
    assert (among.index, among.item, alone.index, alone.item) == (1, "text 1", 2, "")
    assert among.reason.startswith(why) and alone.reason.startswith(why)
    assert len(store) + len(skipped_pairs(store.skipped)) == 5 and len(kept) == 4
    if source != "iterable":
        with pytest.raises(InputError, match=r"^pair 1: text 1: "):
            extracted(SOURCES[source](tmp_path, captions), strict=True)


def as_csv(folder, texts, suffix):
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter="\t" if suffix.startswith(".tsv") else ",")
    writer.writerow(["image", "text"])
    writer.writerows(zip(named_pictures(folder, texts), texts))
    content = stream.getvalue().encode("utf-8", "surrogateescape")
    return write(folder / f"t{suffix}", gzip.compress(content) if suffix.endswith(".gz") else content)


def as_shard_of_texts(folder, texts, suffix):
    members = {}
    for number, text in enumerate(texts):
        members |= {f"{number}.jpg": picture(9), f"{number}.txt": text.encode("utf-8", "surrogateescape")}
    return write_shard(folder / f"t{suffix}", members)


@pytest.mark.parametrize("bad", ["empty", "blank", "not UTF-8", "too long"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".tar"])
def test_where_a_pair_has_one_caption_a_bad_one_costs_the_pair(suffix, bad, tmp_path):
    caption, why = BAD[bad]
    make = as_shard_of_texts if suffix == ".tar" else as_csv
    store = extracted(make(tmp_path, ["a", caption, "b", caption, "c"], suffix))
    assert store.ids == ["0", "2", "4"] and store["text"].captions(range(3)) == ["a", "b", "c"]
    assert [(entry.index, entry.item) for entry in store.skipped] == [(1, ""), (3, "")]
    assert all(entry.reason.startswith(why) for entry in store.skipped)


@pytest.mark.parametrize("source", SOURCES)
@settings(max_examples=12, deadline=None)
@given(mix=st.lists(st.lists(st.booleans(), min_size=1, max_size=3), min_size=1, max_size=9))
def test_what_is_read_and_what_is_skipped_is_what_is_found(source, mix):
    captions = [[f"{place} good" if good else "\udcc4" for place, good in enumerate(own)] for own in mix]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        captions = [["good"], *captions]  # else there is nothing to read
        if source == "datasets":
            captions = [[text.replace("\udcc4", " ") for text in own] for own in captions]
        store = extracted(SOURCES[source](folder, captions))
    good = [[text for text in own if "good" in text] for own in captions]
    assert len(store) == sum(map(bool, good))
    assert [entry.index for entry in skipped_pairs(store.skipped)] == [n for n, own in enumerate(good) if not own]
    lost = [
        (n, f"text {p}") for n, own in enumerate(captions) for p, t in enumerate(own) if good[n] and t not in good[n]
    ]
    assert [(entry.index, entry.item) for entry in store.skipped if entry.item] == lost
    assert len(store["text"].captions(range(sum(map(len, good))))) == sum(map(len, good))


# What is no pair


class Odd(Rows):
    def __getitem__(self, index):
        if isinstance(self.rows[index], Exception):
            raise self.rows[index]
        return self.rows[index]


ODD = {
    "three entries": (("i", "t", 7), "a pair is \\(image, text\\).*of length 3"),
    "a string": ("ab", "a pair is \\(image, text\\).*got str"),
    "None": (None, "got NoneType"),
    "a number": (7, "got int"),
    "no text": ({"image": 1, "caption": "t"}, "\\['text'\\] missing. Rename the columns"),
    "an error": (KeyError("row"), "the data raised KeyError: 'row'"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("make", [Odd, iter, list, Seekable])
def test_an_element_that_is_no_pair_is_its_own_failure(kind, make):
    odd, why = ODD[kind]
    if isinstance(odd, Exception) and make is not Odd:
        pytest.skip("raises in no other way")
    rows = pil_rows([["a"]] * 5)
    for place in (0, 2, 4):
        store = extracted(make([*rows[:place], odd, *rows[place + 1 :]]))
        assert len(store) == 4
        (skipped,) = store.skipped
        assert skipped.index == place
        with pytest.raises(InputError, match=f"pair {place}: .*{why}"):
            extracted(make([*rows[:place], odd, *rows[place + 1 :]]), strict=True)


@pytest.mark.parametrize("make", [Rows, iter, list, Seekable])
def test_data_of_which_the_first_three_are_no_pairs_is_refused_at_once(make):
    asked = []

    class Counted(dict):
        def __getitem__(self, key):
            asked.append(key)
            return super().__getitem__(key)

    rows = [Counted(image=Image.new("RGB", (4, 4)), caption="a") for _ in range(100)]
    with pytest.raises(ValueError, match=r"\['text'\] missing. Rename the columns"):
        extracted(make(rows))
    assert len(asked) < 10


def ending(rows):
    yield from rows
    raise OSError("the disk is gone")


@pytest.mark.parametrize("batched", [False, True])
def test_a_stream_that_raises_names_the_pair_where_it_ended(batched):
    rows = pil_rows([["a"]] * 5)
    if batched:
        rows = [{"image": [image] * 2, "text": ["a", "b"]} for image, _ in rows]
    told = f"the data ended at pair {10 if batched else 5}: OSError: the disk is gone"
    with pytest.raises(RuntimeError, match=told):
        extracted(ending(rows), strict=True)
    store = extracted(ending(rows))  # what was read is kept
    assert len(store) == (10 if batched else 5) and [entry.index for entry in store.skipped] == [len(store)]
    assert store.skipped[0].reason == f"{told}; what follows was not read"


def test_a_stream_that_is_read_from_the_middle_names_the_pair_by_its_place_in_the_whole():
    class Ending(Seekable):
        def iter_from(self, position):
            return ending(self.rows[position:])

    with pytest.raises(RuntimeError, match="ended at pair 5"):
        list(PairReader(Ending(pil_rows([["a"]] * 5)), ["image", "text"]).read(3))


# Collation


TENSORS = [(torch.full((3, 4, 4), number / 9), f"text {number}") for number in range(5)]
PATHS = [(f"{number}.png", f"text {number}") for number in range(5)]


def named(batch):
    return {"image": [image for image, _ in batch], "text": [text for _, text in batch]}


COLLATED = {
    "default": None,
    "list": list,
    "pairs as lists": lambda batch: [list(pair) for pair in batch],
    "tuple of pairs": tuple,
    "dicts": lambda batch: [{"image": image, "text": text} for image, text in batch],
    "columns": lambda batch: list(zip(*batch)),
    "columns as lists": lambda batch: [list(column) for column in zip(*batch)],
    "named columns": named,
    "named columns with ids": lambda batch: {**named(batch), "id": [text for _, text in batch]},
}


@pytest.mark.parametrize("collate", COLLATED)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_batch_of_any_collation_is_read_as_its_pairs(collate, size):
    store = extracted(DataLoader(TENSORS, batch_size=size, collate_fn=COLLATED[collate]))
    assert store["text"].captions(range(5)) == [text for _, text in TENSORS] and not store.skipped


def test_a_missing_caption_in_columns_does_not_turn_them_into_pairs():
    rows = [(image, None if number == 1 else text) for number, (image, text) in enumerate(TENSORS)]
    store = extracted(DataLoader(rows, batch_size=2, collate_fn=lambda batch: list(zip(*batch))))
    assert [entry.index for entry in store.skipped] == [1] and len(store) == 4


def test_pairs_and_columns_that_look_alike_are_refused_with_the_remedy(tmp_path):
    rows = [(str(write(tmp_path / name, picture(9))), text) for name, text in PATHS]
    assert len(extracted(DataLoader(rows, batch_size=2, collate_fn=list))) == 5
    assert len(extracted(DataLoader(rows, batch_size=2))) == 5
    with pytest.raises(ValueError, match=r"pair 0: it is 2 lists of 2: pairs, or columns\? .*collate_fn=list"):
        extracted(DataLoader(rows, batch_size=2, collate_fn=lambda batch: batch))


@pytest.mark.parametrize(
    ("text", "collate"),
    [
        ({"en": "a", "de": "b"}, None),
        ("ab", lambda batch: {"image": [image for image, _ in batch], "text": "ab"}),
        ("a", lambda batch: {"image": [image for image, _ in batch], "text": 7}),
        ("a", lambda batch: {"image": [image for image, _ in batch], "text": torch.tensor(7)}),
    ],
)
def test_a_column_that_is_no_list_is_refused_with_the_remedy(text, collate):
    rows = [(image, text) for image, _ in TENSORS[:4]]
    with pytest.raises(ValueError, match=r"pair 0: 'text' of a batch is a list.*collate_fn=list"):
        extracted(DataLoader(rows, batch_size=2, collate_fn=collate))


def test_a_loader_whose_columns_are_renamed_is_collated_as_before():
    rows = [{"bild": torch.full((4, 4), number / 9), "text": ["a", "b"]} for number in range(4)]
    store = extracted(open_pairs(DataLoader(rows, batch_size=2), image="bild"))
    assert len(store) == 4 and store["text"].captions(range(8)) == ["a", "b"] * 4


# What is no file


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listen(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path may not be long
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


ODDITIES = {
    "a pipe": fifo,
    "a socket": listen,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a pipe": lambda path: (fifo(path.with_name("pipe")), path.symlink_to(path.with_name("pipe"))),
}


@pytest.mark.parametrize("kind", ODDITIES)
@pytest.mark.parametrize("name", ["a.png", "a.txt", "a.tar", "a.parquet", "metadata.csv", "t.csv", "t.jsonl.gz"])
def test_what_is_no_file_is_told_and_never_waited_for(name, kind, tmp_path):
    what = f"is {kind.removeprefix('a link to ')} and no file"
    ODDITIES[kind](tmp_path / name)
    if name in ("a.png", "a.txt"):
        if name == "a.txt":
            write(tmp_path / "a.png", picture(9))
        (pair,) = (pair for pair in open_pairs(tmp_path) if pair["id"] == "a.png")
        assert what in reason(pair)
    elif name == "a.tar":
        (pair,) = open_pairs(tmp_path)
        assert what in reason(pair)
    else:
        whole = tmp_path if name in ("a.parquet", "metadata.csv") or kind == "a folder" else tmp_path / name
        if whole == tmp_path and name.startswith("t."):
            pytest.skip("a folder is read as one")
        with pytest.raises((OSError, ValueError), match=what):
            open_pairs(whole)


def test_links_to_files_elsewhere_are_followed_and_dead_ones_told(tmp_path):
    write(tmp_path / "elsewhere/x.png", picture(7))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").symlink_to(tmp_path / "elsewhere/x.png")
    (tmp_path / "data/b.png").symlink_to(tmp_path / "gone.png")
    write(tmp_path / "data/a.txt", "a caption")
    write(tmp_path / "data/b.txt", "a caption")
    store = extracted(tmp_path / "data")
    assert store.ids == ["a.png"] and "no such image file" in store.skipped[0].reason


# Tables


def test_two_columns_of_one_name_are_refused_if_one_of_them_is_needed(tmp_path):
    path = write(tmp_path / "t.csv", "image,text,text,note,note\na.png,x,y,1,2\n")
    with pytest.raises(ValueError, match=r"t\.csv: there are 2 columns 'text'; rename all but one"):
        open_pairs(path)
    assert [pair["text"] for pair in open_pairs(write(path, "image,text,note,note\na.png,x,1,2\n"))] == ["x"]
    pq.write_table(pa.table([["a.png"], ["x"], ["y"]], names=["image", "text", "text"]), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="there are 2 columns 'text'"):
        open_pairs(tmp_path / "t.parquet")
    import pandas

    table = pandas.DataFrame([[1, "x", "y"]], columns=["image", "text", "text"])
    with pytest.raises(ValueError, match=r"several columns \['text'\]"):
        extracted(table)


def test_a_table_in_utf_16_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="in UTF-16; save it as UTF-8"):
        open_pairs(write(tmp_path / "t.csv", "image,text\na.png,x\n".encode("utf-16")))


def test_a_zero_byte_stays_in_its_row(tmp_path):
    pairs = list(open_pairs(write(tmp_path / "t.csv", "image,text\na\0.png,x\nb.png,y\n")))
    assert len(pairs) == 2 and pairs[1]["text"] == "y"
    with pytest.raises(InputError, match="no such image file"):
        read_pair(as_pair(pairs[0], ["image", "text"]), model().encoders)


def test_a_caption_beyond_the_limit_of_csv_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(modality, "TEXT_LIMIT", 1_000_000)
    write(tmp_path / "a.png", picture(9))
    store = extracted(write(tmp_path / "t.csv", f"image,text\r\na.png,{'x' * 140_000}\r\na.png,y\r\n"))
    assert [len(text) for text in store["text"].captions(range(2))] == [140_000, 1]


# Shards


def members(*names: str) -> dict[str, bytes]:
    return {name: picture(9) if name.endswith((".jpg", ".png")) else Path(name).stem.encode() for name in names}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("0.jpg", "1.jpg", "2.jpg", "0.txt", "1.txt", "2.txt"), {"0": "0", "1": "1", "2": "2"}),
        (("1.txt", "0.txt", "0.jpg", "1.jpg"), {"1": "1", "0": "0"}),
        (("a.b.jpg", "a.b.txt", "a.c.jpg", "a.c.txt"), {"a.b": "a.b", "a.c": "a.c"}),
        (("a.jpg", "a.seg.png", "a.txt"), {"a": "a"}),
        (("x.y/z/a.jpg", "x.y/z/a.txt", "b/a.jpg", "b/a.txt"), {"x.y/z/a": "a", "b/a": "a"}),
        (("./0.jpg", "./0.txt"), {"./0": "0"}),
    ],
)
def test_files_of_a_shard_in_any_order_and_with_dots_are_put_together(names, expected, tmp_path):
    store = extracted(write_shard(tmp_path / "a.tar", members(*names)))
    assert dict(zip(store.ids, store["text"].captions(range(len(expected))))) == expected and not store.skipped


def test_files_without_a_suffix_are_told(tmp_path):
    (pair,) = open_pairs(write_shard(tmp_path / "a.tar", {"one": b"1", "two": b"2"}))
    assert "none of its 2 files has a suffix, the first is 'one'" in reason(pair)


def test_an_empty_shard_has_no_pairs_and_the_others_are_read(tmp_path):
    write_shard(tmp_path / "0.tar", {})
    assert list(open_pairs(tmp_path)) == []
    write_shard(tmp_path / "1.tar", members("0.jpg", "0.txt"))
    assert [pair["id"] for pair in open_pairs(tmp_path)] == ["0"]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_shard_sorted_by_suffix_and_cut_off_has_what_is_whole(share, tmp_path):
    names = [f"{number}.jpg" for number in range(9)] + [f"{number}.txt" for number in range(9)]
    path = write_shard(tmp_path / "a.tar", members(*names))
    path.write_bytes(path.read_bytes()[: int(18 * 1024 * share)])
    pairs = list(open_pairs(path))
    whole = max(0, int(18 * share) - 9)
    assert [pair["id"] for pair in pairs if isinstance(pair["text"], str) and isinstance(pair["image"], bytes)] == list(
        map(str, range(whole))
    )
    assert "what follows is lost" in reason(pairs[-1])
