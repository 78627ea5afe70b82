"""Objects that hold pairs: returned as they are, with columns renamed."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from freezealign.data.pairs import iterate_pairs
from freezealign.data.sources import open_pairs


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


class Broken(list):
    def __getitem__(self, index):
        if index == 1:
            raise OSError("gone")
        return super().__getitem__(index)


def test_the_pair_at_which_map_style_data_raises_is_one_that_says_so_when_read():
    from freezealign.data.reader import PairReader
    from freezealign.inputs import InputError
    from freezealign.modality import read_item

    found = list(PairReader(Broken([("a.png", "a")] * 3), ["image", "text"]).read())
    assert [len(pair.items["text"]) for pair in found] == [1, 1, 1] and found[2].items["text"] == ["a"]
    with pytest.raises(InputError, match="OSError: gone"):
        read_item(found[1].items["image"][0], "image")
