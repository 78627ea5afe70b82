"""A saved model under damage: every value of its JSON odd in turn, and every file something else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from damage import damages, faults, not_files

from freezealign import FreezeAlign, FrozenEncoder, register_encoder
from freezealign.card import write_card
from freezealign.forms import to_json

GOLDEN = Path(__file__).parent / "golden" / "format-2"
TEXTS = ["red", "a green leaf"]
CARD = {
    "training": {"data_name": "toys", "pairs": 3, "skipped": 1, "steps": 2, "final_loss": 0.5, "plan": "short"},
    "evaluations": {"toys": {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "accuracy_chance": 0.1}},
}


def pixels(items: list) -> np.ndarray:
    return np.stack([np.asarray(item.resize((2, 1)), np.float32).reshape(-1) / 255 for item in items])


def letters(items: list[str]) -> np.ndarray:
    return np.stack([np.bincount([ord(c) % 8 for c in item], minlength=8).astype(np.float32) for item in items])


@pytest.fixture
def folder(tmp_path) -> Path:
    register_encoder("golden-pixels", pixels, modality="image", fingerprint="pixels")
    register_encoder("golden-letters", letters, modality="text", fingerprint="letters")
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "model"))
    config = {"format_version": 2, "freezealign": "0.1.0", "card": CARD}
    (folder / "config_freezealign.json").write_bytes(to_json(config))
    return folder


FILES = sorted(
    str(path.relative_to(GOLDEN))
    for path in GOLDEN.rglob("*")
    if path.suffix in (".json", ".safetensors")
    and path.name not in ("modules.json", "config_sentence_transformers.json", "vectors.json")
    and path.parent.name != "1_Normalize"
)


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith(".json")])
def test_a_model_with_an_odd_value_is_refused_or_the_same(folder, tmp_path, file):
    expected = FreezeAlign.from_pretrained(folder, device="cpu").encode(TEXTS)

    def load() -> None:
        model = FreezeAlign.from_pretrained(folder, device="cpu")
        assert model.modalities == ["image", "text"]
        if "KernelHead" not in file:  # another width is another kernel
            assert (model.encode(TEXTS) == expected).all()
        if file == "config_freezealign.json":
            write_card(model, model.model_card_data, tmp_path, "toys")

    told = "" if "FrozenEncoder" in file else str(folder)
    assert not (wrong := faults(damages(folder / file), load, told)), "\n".join(wrong)


@pytest.mark.parametrize("file", FILES)
def test_what_is_no_file_is_refused_by_its_name(folder, file):
    def load() -> None:
        FreezeAlign.from_pretrained(folder, device="cpu")
        raise AssertionError("loaded")

    assert not (wrong := faults(not_files(folder / file), load, str((folder / file).name))), "\n".join(wrong)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("dinov2_folder", "sbert_folder")]


@pytest.mark.parametrize("kind", ["bert_folder", *SLOW])
def test_an_encoder_with_an_odd_value_is_refused_or_the_same(request, tmp_path, kind):
    encoder = FrozenEncoder(request.getfixturevalue(kind))
    encoder.save(str(tmp_path / "encoder"))

    def load() -> None:
        assert FrozenEncoder.from_folder(tmp_path / "encoder").identity == encoder.identity

    assert not (wrong := faults(damages(tmp_path / "encoder" / "config.json"), load, "")), "\n".join(wrong)
