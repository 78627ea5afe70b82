"""Folders of encoders: a damaged one is refused, gives what it gave, or has another identity."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from judge import driver, judge, require
from PIL import Image
from spoil import FOLDER, Link, damaged_folder, in_short, read_folder, write_folder
from valid import TEXTS

from freezealign import FrozenEncoder

ITEMS = {"image": [Image.linear_gradient("L"), Image.new("RGB", (40, 30), "red")], "text": [*TEXTS, "a red apple " * 9]}
MODALITIES = {"dinov2": "image", "bert": "text", "sbert": "text"}
FOLDERS: dict[str, Path] = {}


@pytest.fixture(scope="module", autouse=True)
def folders(dinov2_folder, bert_folder, sbert_folder):
    FOLDERS.update(dinov2=Path(dinov2_folder), bert=Path(bert_folder), sbert=Path(sbert_folder))


def said(folder: Path, modality: str) -> tuple[dict[str, Any], np.ndarray]:
    """Return an encoder's identity, and what it gives."""
    encoder = FrozenEncoder(str(folder), modality)
    given = [encoder(encoder.preprocess([item]))["token_embeddings"].flatten() for item in ITEMS[modality]]
    return encoder.identity, np.concatenate(given)


@cache
def whole(name: str) -> tuple[dict[str, bytes], dict[str, Any], np.ndarray]:
    """Return the files of a folder, and what its encoder says."""
    files = {path: content for path, content in read_folder(FOLDERS[name]).items() if not path.endswith(".md")}
    return files, *said(FOLDERS[name], MODALITIES[name])


@st.composite
def damaged_encoders(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Return the name of a folder, and what lies in it instead."""
    name = draw(st.sampled_from(sorted(MODALITIES)))
    return name, draw(damaged_folder(whole(name)[0], draw(st.sampled_from([[".json"], [".json"], []]))))


@driver(4)
@given(damaged_encoders())
@example(("bert", {"config.json": b"0.1"}))
@example(("bert", {"model.safetensors": b""}))
@example(("bert", {"tokenizer.json": Link("/etc/passwd")}))
@example(("bert", {"tokenizer_config.json": b'"x"'}))
@example(("sbert", {"1_Pooling/config.json": b"7"}))
@example(("dinov2", {"preprocessor_config.json": FOLDER}))
def test_a_damaged_encoder_is_refused_or_known_by_what_it_gives(damaged):
    name, damage = damaged
    files, identity, right = whole(name)

    def run(folder):
        found, given = said(write_folder(folder, files, damage), MODALITIES[name])
        same = given.shape == right.shape and np.allclose(given, right, atol=1e-6, equal_nan=True)
        require(same or found != identity, "it gives something else, and has the identity of the undamaged one")

    judge("encoders", (name, in_short(files, damage)), run)
