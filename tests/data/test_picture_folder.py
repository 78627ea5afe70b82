"""A folder of pictures, with captions in text files or in a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from written import ids, make_folder, reason, red, write, write_table

from freezealign.data.sources import open_pairs
from freezealign.images import read_image
from freezealign.inputs import InputError
from freezealign.modality import read_items, read_text


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


def test_a_caption_that_is_not_utf8_costs_itself_alone(tmp_path):
    write(make_folder(tmp_path) / "a.txt", "Äpfel\n".encode("latin-1") + "Äpfel".encode())
    pairs = list(open_pairs(tmp_path))
    assert pairs[0]["text"] == ["\udcc4pfel", "Äpfel"] and pairs[1]["text"] == ["one"]
    assert [read_items(pair["text"], read_text)[0] for pair in pairs][:2] == [["Äpfel"], ["one"]]


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
        ("z.png", [""]),
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
    assert pairs[0]["text"] == ["one", None, "two"] and pairs[4]["text"] == [None]
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
