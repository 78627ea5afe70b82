"""Captions: odd texts and odd types, alone, in lists and among good ones."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge import driver, judge, require, require_equal
from PIL import Image
from spoil import ODD
from valid import TEXTS, extract, left_out, model

from freezealign import FrozenEncoder
from freezealign.modality import read_text

LETTERS = st.characters() | st.sampled_from("\0\r\n\t\u2028\ufeff\u200b\U0001f469\u200d\ud800\udfff")
CAPTIONS = st.text(LETTERS, max_size=12) | st.sampled_from([*TEXTS, "x" * 100_000, "ä " * 20_000, "\u0301" * 3000])
ODD_CAPTIONS = CAPTIONS | st.sampled_from([*ODD, b"bytes", 3, np.str_("numpy"), np.array(["a", "b"])])
PICTURE = Image.new("RGB", (4, 4), "red")


def readable(text: Any) -> bool:
    """Whether a text may be read, as the documentation says it."""
    try:
        return isinstance(text, str) and bool(text.strip()) and bool(text.encode())
    except UnicodeEncodeError:
        return False


@pytest.fixture(scope="module")
def encoder(bert_folder) -> FrozenEncoder:
    """A real tokenizer."""
    return FrozenEncoder(bert_folder, "text")


@driver(12)
@given(captions=st.lists(ODD_CAPTIONS, min_size=1, max_size=4))
def test_odd_captions(encoder, captions):
    def run(folder):
        for caption in filter(readable, captions):
            alone = encoder(encoder.preprocess([caption]))["token_embeddings"]
            require(np.isfinite(alone.numpy()).all(), "the features are not finite")
            require_equal(read_text(caption), caption, "the text that is read")
        pairs = [{"id": str(n), "image": PICTURE, "text": text} for n, text in enumerate([TEXTS[0], *captions])]
        store = extract(pairs)
        require_equal(sorted([*map(int, store.ids), *left_out(store)]), list(range(len(pairs))), "read + skipped")
        kept = iter(store["text"].captions(np.arange(len(store["text"]))))
        for number, count in zip(map(int, store.ids), store.counts("text")):
            own, texts = as_list(pairs[number]["text"]), list(islice(kept, int(count)))
            require_equal(texts, [text for text in own if readable(text)], "the captions that are kept")
            is_told = len(texts) == len(own) or any(entry.index == number for entry in store.skipped)
            require(is_told, f"a caption of {own} is left out without a word")
        for number in left_out(store):
            require(not all_readable(pairs[number]["text"]), f"pair {number} is left out, and can be read")
        vectors = model().encode(store["text"])
        texts = store["text"].captions(np.arange(len(vectors)))
        require(np.allclose(vectors, model().encode(texts, modality="text"), atol=1e-5), "the store has other vectors")

    judge("captions", captions, run)


def as_list(text: Any) -> list[Any]:
    """Several captions, or one."""
    return list(text) if isinstance(text, (list, tuple, np.ndarray)) else [text]


def all_readable(text: Any) -> bool:
    """Whether there is a caption, and every one can be read."""
    return bool(as_list(text)) and all(map(readable, as_list(text)))
