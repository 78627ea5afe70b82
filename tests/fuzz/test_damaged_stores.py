"""Feature stores: a damaged folder is refused, or gives what it held; one that is gone on with ends as it would have.

What is in the arrays is compared with its checksums where ``verify=True`` asks for it, and nowhere else.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from judge import driver, judge, require, require_equal
from PIL import Image
from spoil import FOLDER, Edit, Link, damaged_folder, in_short, read_folder, write_folder
from valid import TEXTS, contents, extract, model

from freezealign import FeatureStore, FreezeAlign

CAPTIONS = [[TEXTS[0], TEXTS[1]], TEXTS[2], "", TEXTS[3], TEXTS[4]]
PAIRS = [
    {"id": f"i{n}", "image": Image.new("RGB", (4, 4), (40 * n, 9, 9)), "text": text} for n, text in enumerate(CAPTIONS)
]
LEVELS = {
    "tokens": {"level": "tokens"},
    "pooled": {"level": "pooled", "recipe": "pooled"},
    "int8": {"level": "pooled", "recipe": "pooled", "dtype": "int8"},
}


@cache
def whole(level: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files of a store of two shards, and what it says."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        extract(PAIRS, path, shard_size=3, **LEVELS[level])
        return read_folder(path), contents(FeatureStore.open(path))


@st.composite
def damaged_stores(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Return the level of a store, and what lies in it instead."""
    level = draw(st.sampled_from(sorted(LEVELS)))
    only = draw(st.sampled_from([[".json"], ["manifest.json"], []]))
    return level, draw(damaged_folder(whole(level)[0], only))


@driver(20)
@given(damaged_stores(), st.booleans())
@example(("tokens", {"manifest.json": b"1" * 5000}), False)
@example(("tokens", {"manifest.json": Link("/dev/zero")}), False)
@example(("tokens", {"items/text/00001.npy": Link("00001.npy")}), False)
@example(("tokens", {"items/text/00001.npy": Edit(b"'<i4'", b"#<i4'")}), False)
@example(("tokens", {"manifest.json": Edit(b'"complete": true', b'"complete": true, "shards": "2"')}), False)
@example(("tokens", {"shards/00000.json": Edit(b'"index": 2', b'"index": Infinity')}), False)
@example(("tokens", {"manifest.json": Edit(b'"text": {', b'"x": {')}), False)
def test_a_damaged_store_is_refused_or_gives_what_it_held(damaged, partial):
    level, damage = damaged
    files, right = whole(level)

    def run(folder):
        found = contents(FeatureStore.open(write_folder(folder, files, damage), verify=True, partial=partial))
        if partial and found["ids"] != right["ids"]:
            require(found["ids"] in (right["ids"][:2], right["ids"][2:]), f"the items are {found['ids']}")
        else:
            require_equal(found, right, "the store")

    judge("stores", (level, in_short(files, damage), {"partial": partial}), run)


@driver(10)
@given(damaged_stores())
@example(("int8", {"manifest.json": Edit(b'"preprocessing": {}', b'"preprocessing": "x"')}))
@example(("tokens", {"image/lengths/00000.npy": Edit(b"PY\x01\x00v", b"PY\x01\x00t")}))
@example(("pooled", {"shards/00000.json": Edit(b'"image/sentence_embedding"', b'"image/x"')}))
def test_a_damaged_store_that_is_not_verified(damaged):
    level, damage = damaged
    files, _ = whole(level)

    def run(folder):
        store = FeatureStore.open(write_folder(folder / "store", files, damage))
        require(len(store.ids) == len(store), "not every item has a name")
        contents(store)
        for modality in store.features:
            vectors = model(LEVELS[level].get("recipe", "token")).encode(store[modality])
            require(np.isfinite(vectors).all(), "a vector is not finite")
        store.select([1]).save(folder / "copy")
        if level != "tokens" and len(store.features) == 2:
            own = FreezeAlign(["fuzz-pixels", "fuzz-letters"], recipe="pooled", dim=4, seed=0, device="cpu")
            own.fit(store, epochs=1, show_progress_bar=False)

    judge("stores not verified", (level, in_short(files, damage)), run, "features were made by another encoder")


@driver(10)
@given(damaged_stores())
@example(("tokens", {"shards/00000.json": b'{"files": 7, "skipped": []}'}))
@example(("tokens", {"shards/00000.json": b'{"files": {}, "skipped": [7]}'}))
@example(("tokens", {"shards/00000.json": FOLDER}))
def test_a_damaged_store_is_gone_on_with_or_refused(damaged):
    level, damage = damaged
    files, right = whole(level)

    def run(folder):
        path = write_folder(folder / "store", files, damage)
        store = extract(PAIRS, path, shard_size=3, **LEVELS[level])
        require_equal(contents(FeatureStore.open(path)), contents(store), "the store that is opened again")
        require_equal(contents(FeatureStore.open(path, verify=True)), right, "the store")

    judge("stores gone on with", (level, in_short(files, damage)), run, "the data has changed")
