"""Layouts that other tools write: nothing in them is read as a picture without a caption, and none vanishes."""

from __future__ import annotations

import pytest
from written import picture, write, write_table

from freezealign.data.sources import open_pairs


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("splits", [[""], ["train", "test"]])
def test_the_layouts_of_imagefolder_have_their_captions(tmp_path, suffix, splits):
    expected = {}
    for split in splits:
        rows = [{"file_name": f"{number}.png", "text": f"{split} {number}"} for number in range(3)]
        place = tmp_path / split
        place.mkdir(exist_ok=True)
        write_table(place, suffix, rows).rename(place / f"metadata{suffix}")
        for row in rows:
            write(tmp_path / split / row["file_name"], picture(9))
            expected[f"{split}/{row['file_name']}".lstrip("/")] = [row["text"]]
    assert {pair["id"]: pair["text"] for pair in open_pairs(tmp_path)} == expected


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG"])
def test_pictures_of_every_spelling_are_found(tmp_path, suffix):
    write(tmp_path / f"a{suffix}", picture(9))
    write(tmp_path / "a.txt", "a caption")
    assert [pair["text"] for pair in open_pairs(tmp_path)] == [["a caption"]]


@pytest.mark.parametrize("name", ["metadata.csv", "pairs.csv"])
def test_paths_as_windows_writes_them_name_their_pictures(tmp_path, name):
    write(tmp_path / "images" / "0.png", picture(9))
    column = "file_name" if name == "metadata.csv" else "image"
    write(tmp_path / name, f"{column},text\nimages\\0.png,a caption\n")
    (pair,) = open_pairs(tmp_path if name == "metadata.csv" else tmp_path / name)
    assert pair["image"] == tmp_path / "images" / "0.png" and pair["text"] in ("a caption", ["a caption"])
