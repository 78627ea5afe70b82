"""One bad item costs itself: whatever reading, preprocessing or encoding it raises, the others are kept."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from freezealign import FreezeAlign, FrozenEncoder
from freezealign.encoders.callable import CallableEncoder
from freezealign.inputs import InputError

QUIET = {"show_progress_bar": False}
BAD = 2


def png(width: int, height: int) -> bytes:
    """A PNG of so many pixels in very few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"".join([b"\0" * (1 + width)] * min(height, 10_000)), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def closed() -> Image.Image:
    image = Image.open(io.BytesIO(png(8, 8)))
    image.close()
    return image


def handle_gone() -> Image.Image:
    file = io.BytesIO(png(8, 8))
    image = Image.open(file)
    file.close()
    return image


def raising(error: BaseException):
    def item():
        raise error

    return item


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
ITEMS = {
    "closed picture": (closed, "cannot read"),
    "handle closed underneath": (handle_gone, "cannot read"),
    "function with an OSError": (lambda: raising(OSError("the disk is gone")), "the disk is gone"),
    "function with a KeyError": (lambda: raising(KeyError("k")), "KeyError"),
    "function out of memory": (lambda: raising(MemoryError()), "MemoryError"),
    "no pixels": (lambda: Image.new("RGB", (0, 5)), "has no pixels: it is 0 x 5"),
    "sliver": (lambda: png(1, 10_000), "1 x 10000; at most 50 times"),
    "lying sliver": (lambda: Image.new("L", (5_000, 2)), "5000 x 2"),
    "too many pixels": (lambda: png(12_000, 12_000), "12000 x 12000 pixels; at most"),
    "PostScript": (lambda: EPS, "not an image"),
    "nothing": (lambda: None, "got None"),
}


def model(**encoders) -> FreezeAlign:
    def pixels(items):
        return np.stack([np.asarray(item.resize((2, 2)), np.float32).reshape(-1) / 255 for item in items])

    def letters(items):
        return np.stack([np.array([len(item), 1], np.float32) for item in items])

    functions = {"image": pixels, "text": letters, **encoders}
    widths = {"image": 12, "text": 2}
    return FreezeAlign(
        [FrozenEncoder(CallableEncoder(function, name, widths[name])) for name, function in functions.items()],
        dim=4,
        device="cpu",
    )


def pairs(bad=None) -> list[tuple]:
    good = [(Image.new("RGB", (8, 8), (40 * number, 0, 0)), f"picture {number}") for number in range(5)]
    return good if bad is None else [*good[:BAD], bad, *good[BAD + 1 :]]


def check(store, reason: str) -> None:
    assert store.ids == ["0", "1", "3", "4"]
    (skipped,) = store.skipped
    assert skipped.index == BAD and reason in skipped.reason, skipped.reason


@pytest.mark.parametrize("kind", ITEMS)
def test_a_bad_picture_is_that_pairs_failure(kind):
    make, reason = ITEMS[kind]
    check(model().extract_features(pairs((make(), "picture")), batch_size=3, **QUIET), reason)
    with pytest.raises(InputError, match=f"pair {BAD}: "):
        model().extract_features(pairs((make(), "picture")), strict=True, **QUIET)


def fails_on(word: str, function):
    def encode(items):
        if any(word in str(item) for item in items):
            raise ValueError(f"cannot encode {word}")
        return function(items)

    return encode


CAPTIONS = ["", "a bad text", "good", "one bad more"]


def test_a_caption_that_the_encoder_fails_on_costs_itself(tmp_path):
    encoder = fails_on("bad", lambda items: np.ones((len(items), 2), np.float32))
    data = pairs((Image.new("RGB", (8, 8)), CAPTIONS))
    for path in (None, tmp_path):
        store = model(text=encoder).extract_features(data, path, batch_size=3, **QUIET)
        assert store.ids == ["0", "1", "2", "3", "4"] and store["text"].captions([2, 3]) == ["good", "picture 3"]
        assert [(entry.index, entry.item) for entry in store.skipped] == [(BAD, f"text {place}") for place in (0, 1, 3)]
        assert store.skipped[1].reason == "ValueError: cannot encode bad"
    with pytest.raises(InputError, match=f"pair {BAD}: text 0: ValueError"):
        data = pairs((Image.new("RGB", (8, 8)), CAPTIONS[1:3]))
        model(text=encoder).extract_features(data, batch_size=3, strict=True, **QUIET)


def test_a_caption_whose_vector_is_not_finite_costs_itself():
    def letters(items):
        return np.stack([np.array([np.nan if "bad" in item else len(item), 1], np.float32) for item in items])

    store = model(text=letters).extract_features(pairs((Image.new("RGB", (8, 8)), CAPTIONS)), batch_size=3, **QUIET)
    assert store.ids == ["0", "1", "2", "3", "4"] and store["text"].captions([2, 3]) == ["good", "picture 3"]
    assert [(entry.index, entry.item) for entry in store.skipped] == [(BAD, f"text {place}") for place in (0, 1, 3)]
    assert "gave NaN or Inf for it" in store.skipped[1].reason


def ending(error: BaseException):
    yield from pairs()[:4]
    raise error


def test_data_that_raises_in_the_middle_keeps_what_was_read(caplog, tmp_path):
    store = model().extract_features(ending(KeyError("gone\x1b[2J")), batch_size=3, **QUIET)
    assert store.ids == ["0", "1", "2", "3"]
    (ended,) = store.skipped
    assert ended.index == 4 and "the data ended at pair 4: KeyError: " in ended.reason
    assert "what was read before it are kept" in caplog.text
    assert "\x1b" not in caplog.text
    with pytest.raises(RuntimeError, match="the data ended at pair 4"):
        model().extract_features(ending(KeyError("gone")), strict=True, **QUIET)
    with pytest.raises(RuntimeError, match="the data ended at pair 4"):  # where running it again goes on
        model().extract_features(ending(KeyError("gone")), tmp_path / "store", **QUIET)


def test_an_item_that_the_encoder_fails_on_is_that_pairs_failure():
    encoder = fails_on("bad", lambda items: np.ones((len(items), 2), np.float32))
    data = pairs((Image.new("RGB", (8, 8)), "a bad text"))
    check(model(text=encoder).extract_features(data, batch_size=3, **QUIET), "ValueError: cannot encode bad")
    with pytest.raises(InputError, match=f"pair {BAD}: ValueError"):
        model(text=encoder).extract_features(data, batch_size=3, strict=True, **QUIET)


def test_an_encoder_that_fails_on_everything_is_no_ones_failure():
    encoder = fails_on("picture", None)
    with pytest.raises(ValueError, match=r"^cannot encode picture"):
        model(text=encoder).extract_features(pairs(), batch_size=3, **QUIET)


def test_an_item_that_preprocessing_fails_on_is_that_pairs_failure(monkeypatch):
    aligner = model()
    encoder = aligner.tower("text").encoder.encoder
    monkeypatch.setattr(encoder, "preprocess", fails_on("bad", lambda items: {"inputs": items}))
    store = aligner.extract_features(pairs((Image.new("RGB", (8, 8)), "bad")), batch_size=3, **QUIET)
    check(store, "ValueError: cannot encode bad")


class Holed(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index == BAD:
            raise RuntimeError("row 2 is corrupt")
        return pairs()[index]


def test_a_dataset_that_raises_for_one_pair_goes_on(tmp_path):
    check(
        model().extract_features(Holed(), tmp_path / "store", batch_size=3, **QUIET), "RuntimeError: row 2 is corrupt"
    )
    history = model().fit(Holed(), schedule="paper", epochs=1, batch_size=5, cache_features=False, **QUIET)
    assert [entry.index for entry in history.skipped] == [BAD]


# What a DataLoader's default collation does


@pytest.mark.parametrize("size", [2, 3, 5])
def test_captions_that_default_collation_transposed_are_put_back(size):
    data = [(torch.full((3, 8, 8), number / 9), [f"{number} {place}" for place in range(5)]) for number in range(6)]
    store = model().extract_features(DataLoader(data, batch_size=size), **QUIET)
    captions = store["text"].captions(np.arange(30))
    assert captions == [f"{number} {place}" for number in range(6) for place in range(5)]


def test_grey_pictures_of_a_loader_are_pictures_and_no_channels():
    data = [(torch.full((8, 8), number / 9), f"picture {number}") for number in range(7)]
    assert len(model().extract_features(DataLoader(data, batch_size=3), **QUIET)) == 7


def columns(batch):
    return list(zip(*batch))


@pytest.mark.parametrize("collate", [list, columns, tuple])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_batch_may_be_its_columns_or_the_list_of_its_pairs(collate, size):
    expected = model().extract_features(pairs(), **QUIET)
    collate = (lambda batch: tuple(zip(*batch))) if collate is tuple else collate
    store = model().extract_features(DataLoader(pairs(), batch_size=size, collate_fn=collate), **QUIET)
    assert store["text"].captions(range(5)) == expected["text"].captions(range(5))


# Tables


def test_tables_are_read_as_pairs():
    import pandas

    columns = {"image": [image for image, _ in pairs()], "text": [text for _, text in pairs()]}
    expected = model().extract_features(pairs(), level="pooled", **QUIET)
    for table in (columns, pandas.DataFrame(columns)):
        store = model().extract_features(table, level="pooled", **QUIET)
        assert torch.equal(store["image"].vectors(), expected["image"].vectors())


def test_a_dict_of_data_sets_is_refused_with_their_names():
    with pytest.raises(TypeError, match=r"\['train', 'test'\] holds no pairs; pass one of its values"):
        model().extract_features({"train": pairs(), "test": pairs()}, **QUIET)


def test_a_table_is_not_encoded_as_the_names_of_its_columns():
    import pandas

    with pytest.raises(InputError, match=r"a table has columns.*table\['…'\]\.tolist"):
        model().encode(pandas.DataFrame({"text": ["a", "b"]}))


@pytest.mark.parametrize("form", [io.BytesIO, bytearray, memoryview, bytes])
def test_encoded_bytes_in_any_form_are_one_picture(form):
    assert model().encode(form(png(8, 8))).shape == (4,)


def test_a_transform_of_the_users_gets_what_it_expects(tmp_path):
    from datasets import Dataset as Table
    from datasets import Features, Value
    from datasets import Image as ImageFeature

    table = Table.from_dict(
        {"image": [png(8, 8)] * 3, "text": ["a", "b", "c"]},
        features=Features({"image": ImageFeature(), "text": Value("string")}),
    )
    shown = []

    def transform(rows):
        shown.extend(type(image) for image in rows["image"])
        return {**rows, "image": [image.convert("L") for image in rows["image"]]}

    assert len(model().extract_features(table.with_transform(transform), **QUIET)) == 3
    assert all(issubclass(kind, Image.Image) for kind in shown)
