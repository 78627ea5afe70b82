"""webdataset shards as img2dataset writes them, whole and damaged."""

from __future__ import annotations

import json
import sys
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from written import (
    ids,
    make_source,
    reason,
    red,
    same_folder,
    sample,
    shown,
    texts,
    write,
    write_img2dataset,
    write_shard,
)

from freezealign.data.sources import open_pairs
from freezealign.inputs import Unreadable


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
        ("3", b"3", None),
        ("4", b"4", Unreadable(f"{path}: '4' has only ['jpg'], and no .txt or .json.")),
        ("5", Unreadable(f"{path}: '5' has only ['txt', 'cls'], and no picture."), "no picture"),
        ("sub/6", b"6", "six"),
        ("7", b"7", ["a", "b"]),
    ]


def test_a_text_of_the_json_can_be_chosen_and_a_wrong_choice_is_explained(tmp_path):
    write_shard(tmp_path / "a.tar", sample("0", 1, "x") | {"0.json": b'{"alt": "y"}'} | sample("1", 1, "x"))
    chosen, missing = open_pairs(tmp_path, text="alt")
    assert chosen["text"] == "y"
    assert "no 'alt' in its .json, which has ['caption', 'url', 'key', 'status']" in reason(missing)


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
    names = ("0.jpg", "0.jpg", "0.txt", "0.TXT", "1.jpg", "1.txt")
    path = write_shard(tmp_path / "a.tar", [(name, str(number).encode()) for number, name in enumerate(names)])
    first, second, note = open_pairs(path)
    assert [tuple(pair.values()) for pair in (first, second)] == [("0", b"0", "2"), ("1", b"4", "5")]
    assert "0.jpg: duplicate file name" in reason(note) and "0.TXT: duplicate file name" in reason(note)


def test_a_shard_that_cannot_be_opened_does_not_end_the_run(tmp_path):
    source = open_pairs(write_img2dataset(tmp_path))
    (tmp_path / "00001.tar").unlink()
    pairs = list(source)
    assert ids(pairs)[2] == "00001.tar" and "there is no file" in reason(pairs[2]) and len(pairs) == 5


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


def test_without_webdataset_shards_are_read_and_for_braces_the_command_that_installs_it_is_given(tmp_path, monkeypatch):
    write_img2dataset(tmp_path)
    for module in ("webdataset", "braceexpand"):
        monkeypatch.setitem(sys.modules, module, None)
    assert len(list(open_pairs(tmp_path))) == 6
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'freezealign\[web\]'"):
        open_pairs(tmp_path / "{0..1}.tar")


def test_without_pyarrow_the_command_that_installs_it_is_given(tmp_path, monkeypatch):
    make_source("parquets", tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError, match="freezealign\\[web\\]"):
        open_pairs(tmp_path)
