"""What was passed to ``encode``: one item or several, and which tower each belongs to."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from freezealign.files import is_file
from freezealign.images import ENCODED
from freezealign.inputs import InputError, is_url, shorten
from freezealign.modality import MODALITIES, modality_of


def is_single(inputs: Any, kinds: Iterable[str] | None = None) -> bool:
    """Whether ``inputs`` is one item of some kinds, by default of any, rather than a collection of items."""
    if isinstance(inputs, (*ENCODED, str, Path, Image.Image, dict)):
        return True
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "UO":
        return False
    if isinstance(inputs, (np.ndarray, torch.Tensor)):
        return any(inputs.ndim in modality_of(kind).axes for kind in kinds or MODALITIES)
    return not (hasattr(inputs, "__iter__") or hasattr(inputs, "__len__"))


def as_items(inputs: Any, kinds: Iterable[str] | None = None) -> Any:
    """Return the items of ``inputs``: a 4-D array or tensor is a batch of images, a 2-D one of vectors stays as it is.

    Raises:
        InputError: If it is a table, of which it cannot be told which column is meant.
    """
    if hasattr(inputs, "columns") and hasattr(inputs, "iloc"):
        raise InputError(f"a table has columns, {list(inputs.columns)}: pass one of them, table['…'].tolist().")
    if is_single(inputs, kinds):
        return [inputs]
    return inputs if isinstance(inputs, (np.ndarray, torch.Tensor)) and inputs.ndim == 2 else list(inputs)


def infer_modality(item: Any, towers: Mapping[str, str]) -> str:
    """Return the tower that one item belongs to.

    A dict with one key names its tower: ``{"audio": x}``. Images, paths, bytes, arrays and tensors are images. A
    string is a text, unless it is an http(s) address or ends in a suffix of a modality *and* is an existing file. A
    string that looks like such a path but is no file is a text, with a warning: say which with ``modality=`` or
    ``encode_image`` / ``encode_text``.

    Args:
        item: What to look at.
        towers: For each tower the modality of its encoder; the two differ where the user chose the tower's name.

    Raises:
        InputError: If the item is of no known kind, or the model has no tower, or several, for it.
    """
    if isinstance(item, dict) and len(item) == 1 and (name := str(next(iter(item)))) not in ("bytes", "path"):
        if name not in towers:
            raise InputError(f"{shorten(item)} is for a '{name}' tower, but the model has only {list(towers)}.")
        return name
    kind = _kind(item, [name for name in MODALITIES if name in towers.values()])
    fitting = [name for name, modality in towers.items() if modality == kind]
    if len(fitting) != 1:
        found = f"several {kind} towers, {fitting}; pass modality=…" if fitting else f"only {list(towers)}"
        raise InputError(f"this looks like {kind}: {shorten(item)}, but the model has {found}.")
    return fitting[0]


def _kind(item: Any, present: list[str]) -> str:
    if isinstance(item, str):
        return _kind_of_string(item, present)
    for modality in MODALITIES.values():
        if modality.recognises(item):
            return modality.name
    raise InputError(
        f"cannot tell what {shorten(item)} is ({type(item).__name__}); pass an image (PIL, path, URL, bytes, array, "
        "tensor), a string, or {modality: item}."
    )


def _kind_of_string(item: str, present: list[str]) -> str:
    suffix = Path(item).suffix.lower()
    kind = next((name for name in present if suffix in MODALITIES[name].suffixes and "\n" not in item), None)
    if is_url(item) and "image" in present:
        return kind or "image"
    if kind is None or is_file(item):
        return kind or "text"
    warnings.warn(
        f"{shorten(item)} looks like an {kind} path but is no file, so it is taken as text; "
        f"use encode_{kind} or encode_text to say which it is.",
        stacklevel=2,
    )
    return "text"
