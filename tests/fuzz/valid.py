"""Small valid inputs, and a model of two functions that reads them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from judge import require, require_equal
from PIL import Image

from freezealign import FeatureStore, FreezeAlign, register_encoder

TEXTS = ["a red apple", "a green car", "ein blauer Hund", "number 4", "五"]


def pixels(items: list[Image.Image]) -> np.ndarray:
    """Six numbers of a picture."""
    return np.stack([np.asarray(item.resize((2, 1)), np.float32).reshape(-1) / 255 for item in items])


def letters(items: list[str]) -> np.ndarray:
    """How often letters occur."""
    return np.stack([np.bincount([ord(c) % 8 for c in item], minlength=8).astype(np.float32) for item in items])


register_encoder("fuzz-pixels", pixels, modality="image", fingerprint="pixels")
register_encoder("fuzz-letters", letters, modality="text", fingerprint="letters")


def picture(red: int, kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (6, 5), **options: Any) -> bytes:
    """A picture that is known again by its red channel."""
    content = io.BytesIO()
    image = Image.new("RGB", size, (red, 40, 90)).convert("I" if mode == "I;16" else mode)
    if mode == "F":  # floats lie in [0, 1]
        image = image.point(lambda value: value * (1 / 255) + 0)
    (image.convert(mode) if mode == "I;16" else image).save(content, kind, **options)
    return content.getvalue()


def tar(members: Iterable[tuple[str | dict[str, Any], bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar file of members: their names, or fields of their headers, and what is in them."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for fields, content in members:
            header = tarfile.TarInfo()
            header.size = len(content)
            for field, value in ({"name": fields} if isinstance(fields, str) else fields).items():
                setattr(header, field, value)
            archive.addfile(header, io.BytesIO(content) if header.isreg() else None)
    return stream.getvalue()


@cache
def model(recipe: str = "token") -> FreezeAlign:
    """A model that takes no time; nothing may change it."""
    return FreezeAlign(["fuzz-pixels", "fuzz-letters"], recipe=recipe, dim=4, seed=0, device="cpu")


def extract(data: Any, path: Any = None, recipe: str = "token", **options: Any) -> FeatureStore:
    """Extract features in batches of two."""
    return model(recipe).extract_features(data, path, batch_size=2, show_progress_bar=False, **options)


def accounted(data: Any, count: int) -> FeatureStore | None:
    """Extract features, and require that every pair is read or listed; ``None`` where none could be read."""
    try:
        store = extract(data)
    except ValueError as error:
        require(str(error).startswith("there is no pair that can be read. pair "), f"it does not say why: {error}")
        return None
    require_equal(len(store) + len(left_out(store)), count, "read + skipped")
    require(all(entry.reason and 0 <= entry.index < count for entry in store.skipped), f"{store.skipped}")
    vectors = model().encode(store["image"]), model().encode(store["text"])
    require(all(np.isfinite(rows).all() for rows in vectors), "a vector is not finite")
    return store


def left_out(store: FeatureStore) -> list[int]:
    """Return the positions of the pairs that were left out whole, not of those that lost a caption."""
    return [entry.index for entry in store.skipped if not getattr(entry, "item", "")]


def contents(store: FeatureStore) -> dict[str, Any]:
    """Everything a store says."""
    found: dict[str, Any] = {"ids": store.ids, "level": store.level, "length": len(store)}
    found["skipped"] = [(entry.index, entry.reason) for entry in store.skipped]
    for modality in store.features:
        found[f"{modality} counts"] = store.counts(modality)
        features = store[modality].load(np.arange(len(store[modality])))
        found |= {f"{modality} {key}": np.asarray(value) for key, value in features.items()}
        if store[modality].texts is not None:
            found[f"{modality} captions"] = store[modality].captions(np.arange(len(store[modality])))
    return found
