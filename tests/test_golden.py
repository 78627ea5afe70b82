"""A folder that was saved once, and its vectors: it loads for ever. Make a new folder for a new format; keep this one.

``golden/format-1`` was written before blocks had public names, ``golden/format-2`` since; ``golden/format-2-joint``
has two encoders in each tower.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from freezealign import FreezeAlign, register_encoder

GOLDEN = Path(__file__).parent / "golden"
IMAGES = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
TEXTS = ["red", "a green leaf", "the blue sky"]


def pixels(items: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(item.resize((2, 1)), np.float32).reshape(-1) / 255 for item in items])


def letters(items: list[str]) -> np.ndarray:
    return np.stack([np.bincount([ord(c) % 8 for c in item], minlength=8).astype(np.float32) for item in items])


def means(items: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(item, np.float32).mean((0, 1)) - np.float32(99) for item in items])


def lengths(items: list[str]) -> np.ndarray:
    return np.array([[len(item), item.count(" "), item.count("e")] for item in items], np.float32)


@pytest.fixture(autouse=True)
def encoders():
    register_encoder("golden-pixels", pixels, modality="image", fingerprint="pixels")
    register_encoder("golden-letters", letters, modality="text", fingerprint="letters")
    register_encoder("golden-means", means, modality="image", fingerprint="means")
    register_encoder("golden-lengths", lengths, modality="text", fingerprint="lengths")


@pytest.mark.parametrize("folder", sorted(path.name for path in GOLDEN.iterdir()))
def test_a_folder_saved_once_loads_for_ever(folder):
    model = FreezeAlign.from_pretrained(GOLDEN / folder, device="cpu")
    expected = json.loads((GOLDEN / folder / "vectors.json").read_text())
    np.testing.assert_allclose(model.encode(IMAGES), expected["image"], atol=1e-6)
    np.testing.assert_allclose(model.encode(TEXTS), expected["text"], atol=1e-6)
    assert model.logit_scale.temperature.item() == pytest.approx(expected["temperature"])


def test_blocks_are_stored_by_public_names_which_a_loader_can_import():
    router = json.loads((GOLDEN / "format-2" / "router_config.json").read_text())
    import freezealign

    for name in router["types"].values():
        package, _, attribute = name.rpartition(".")
        assert package == "freezealign" and hasattr(freezealign, attribute)
