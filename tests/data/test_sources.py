"""Sources: whatever a path names gives the same pairs, again and again, and a wrong path is refused."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written import (
    FORMS,
    KINDS,
    ids,
    make_source,
    picture,
    red,
    sample,
    shown,
    texts,
    write,
    write_img2dataset,
    write_shard,
)

from freezealign import FreezeAlign
from freezealign.data.pairs import iterate_pairs
from freezealign.data.sources import open_pairs


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


def test_a_folder_is_read_as_the_first_form_that_it_holds(tmp_path):
    pq.write_table(pa.table({"image": ["p"], "text": ["parquet"]}), tmp_path / "a.parquet")
    assert texts(open_pairs(tmp_path)) == ["parquet"]
    write(tmp_path / "sub/a.png", picture(1))
    assert texts(open_pairs(tmp_path)) == [[]]
    write(tmp_path / "metadata.csv", "file_name,text\nsub/a.png,table\n")
    assert texts(open_pairs(tmp_path)) == [["table"]]
    write_shard(tmp_path / "0.tar", sample("0", 1, "shard"))
    assert texts(open_pairs(tmp_path)) == ["shard"]


PICTURES, SHARD, TABLE = {"a.png": ""}, {"0.tar": ""}, "file_name,text\n"
EMPTY = "there is no row that can be read; it is empty"
REFUSED = {
    # what lies in the folder, what of it is opened, options, error, message
    "two tables": (
        {"metadata.csv": TABLE, "captions.jsonl": TABLE},
        "",
        {},
        ValueError,
        r"\['metadata.csv', 'captions.jso",
    ),
    **{
        f"a column {word} of {kind}": (files, "", {word: "x"}, ValueError, f"no column to choose with {word}='x'")
        for kind, files, words in (("pictures", PICTURES, ("image", "text", "id")), ("shards", SHARD, ("image", "id")))
        for word in words
    },
    "no line": ({"t.csv": ""}, "t.csv", {}, ValueError, rf"t\.csv: {EMPTY}"),
    "no object": ({"t.jsonl": ""}, "t.jsonl", {}, ValueError, rf"t\.jsonl: {EMPTY}"),
    "a header alone": ({"t.csv": "image,text\n"}, "t.csv", {}, ValueError, rf"t\.csv: {EMPTY}"),
    "bad rows alone": ({"t.jsonl": "[]"}, "t.jsonl", {}, ValueError, "can be read; line 1 is not a JSON object"),
    "no Parquet": ({"t.parquet": "no"}, "t.parquet", {}, ValueError, r"t\.parquet: not a readable Parquet file"),
    "nothing to read": ({"readme.md": ""}, "", {}, FileNotFoundError, f"nothing to read in the folder.*{FORMS}"),
    "a mixed pattern": (
        {"0.parquet": "", **SHARD},
        "0.*",
        {},
        ValueError,
        r"cannot read pairs from .*0\.parquet.*0\.tar",
    ),
    "missing shards": (SHARD, "{0..5}.tar", {}, FileNotFoundError, r"\.5\}\.tar': 5 of 6 files are missing, .*1\.tar"),
    **{
        f"a file {name}": ({name: "x"}, name, {}, ValueError, rf"cannot read pairs from \['.*{name}'\].*{FORMS}")
        for name in ("t.xlsx", "t.tar.gz", "t.parquet.gz", "t", "t.png")
    },
    **{
        f"no {name[:9]}": ({}, name, {}, FileNotFoundError, f"no file or folder '.*{FORMS}")
        for name in ("gone", "gone.csv", "user/dataset", "x" * 9999)
    },
    "no match": ({}, "*.tar", {}, FileNotFoundError, f"no file or folder '.*{FORMS}"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_source_that_cannot_be_read_at_all_is_refused_at_once(what, tmp_path):
    files, opened, options, error, message = REFUSED[what]
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises(error, match=message):
        open_pairs(tmp_path / opened, **options)


def test_a_pattern_on_the_web_is_no_path():
    with pytest.raises(FileNotFoundError, match=r"2 of 2 files are missing, the first is 'https:/x\.org/0/a\.tar'"):
        open_pairs("https://x.org/{0..1}/a.tar")


@pytest.mark.parametrize(
    ("data", "message"),
    [({"train": [], "test": []}, r"pass one of its values: \['train', 'test'\]"), (5, "not from int")],
)
def test_an_object_without_pairs_is_refused(data, message):
    with pytest.raises(TypeError, match=message):
        open_pairs(data)


def test_the_extractor_lists_what_it_skips_with_the_reasons(tmp_path, dinov2_folder, bert_folder):
    members = sample("0", 1, "a red apple") | sample("1", 2, None) | {"2.txt": b"a car"} | sample("3", 3, "a dog")
    path = write_shard(tmp_path / "a.tar", members)
    path.write_bytes(path.read_bytes().rstrip(b"\0"))
    model = FreezeAlign({"text": bert_folder, "image": dinov2_folder}, dim=16, seed=0, device="cpu")
    store = model.extract_features(open_pairs(path), show_progress_bar=False)
    assert [(entry.index, entry.reason[:28]) for entry in store.skipped] == [
        (1, "got None where text was expe"),
        (2, f"{path}: '2' has only ['txt'], and no picture."[:28]),
        (4, f"cannot read all of {path}: "[:28]),
    ]
    assert len(store) == 2
