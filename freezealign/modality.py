"""Modalities: for each, how an item is recognised, read, probed, pooled and augmented. One table, open to more."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from freezealign.files import is_file
from freezealign.images import IMAGE_SUFFIXES, random_view, read_image
from freezealign.inputs import InputError, Unreadable, describe, is_url, shorten


@dataclass(frozen=True)
class Modality:
    """What the library knows of a kind of input.

    Args:
        name: Of the modality, and of a model's tower for it.
        read: From an item in any of its forms to what encoders take; raises an :class:`InputError` that names it.
        probe: One item, for finding out what an encoder gives; ``None`` where there is none.
        recognises: Whether an item that is no string is of this modality.
        suffixes: Of its files, in lower case, with the dot: the path of such a file stands for what is in it.
        axes: How many axes an array or tensor may have that is one item.
        cls: Whether a CLS vector stands for an item: ready recipes then pool by it and give it a projector of its own,
            as the paper does with images. Else the mean over all tokens does, as with its texts.
        augment: From an item already read and a generator to a random view of it; ``None`` where there is none.
    """

    name: str
    read: Callable[[Any], Any] = lambda item: item
    probe: Any = None
    recognises: Callable[[Any], bool] = lambda item: False
    suffixes: frozenset[str] = frozenset()
    axes: tuple[int, ...] = ()
    cls: bool = False
    augment: Callable[[Any, np.random.Generator], Any] | None = None


def read_text(item: Any) -> str:
    """Return the item if it is a non-empty string.

    Raises:
        InputError: If it is not a string, has nothing but white space, or is not valid Unicode.
    """
    if not isinstance(item, str):
        raise InputError(f"expected a text, got {shorten(item)} ({type(item).__name__}).")
    if not item.strip():
        raise InputError(f"the text is empty: {shorten(item)}.")
    if any("\ud800" <= letter <= "\udfff" for letter in item):
        raise InputError(f"the text is not valid Unicode (a lone surrogate): {shorten(item)}.")
    return item


BYTES = (bytes, bytearray, memoryview, io.BytesIO)
"""In which a picture's file may be passed whole."""


def _is_image(item: Any) -> bool:
    return callable(item) or isinstance(item, (Image.Image, Path, np.ndarray, torch.Tensor, dict, *BYTES))


MODALITIES: dict[str, Modality] = {}


def register_modality(name: str, **settings: Any) -> None:
    """Make a kind of input known: keyword arguments are the fields of :class:`Modality`.

    A tower may have any name without this, and its encoder then takes items as they are; this is for modalities that
    ``encode`` is to recognise, read, probe or augment.

    >>> register_modality("voxels", axes=(4,), probe=np.zeros((1, 8, 8, 8), np.float32))
    """
    MODALITIES[name] = Modality(name, **settings)


register_modality(
    "image",
    read=read_image,
    probe=Image.new("RGB", (64, 64), "gray"),
    recognises=_is_image,
    suffixes=IMAGE_SUFFIXES,
    axes=(2, 3),
    cls=True,
    augment=random_view,
)
register_modality("text", read=read_text, probe="probe")


def modality_of(name: str) -> Modality:
    """Return the modality called ``name``; one that nobody registered takes items as they are."""
    return MODALITIES.get(name) or Modality(name)


def read_item(item: Any, modality: str) -> Any:
    """Return an item, or what a dict that names its modality holds, as encoders of ``modality`` take it.

    Raises:
        InputError: If it cannot be read; the message names it.
    """
    item = unwrap(item, modality)
    if isinstance(item, Unreadable):
        raise InputError(item.reason)
    if item is None:
        raise InputError(f"got None where {modality} was expected.")
    try:
        return modality_of(modality).read(item)
    except InputError:
        raise
    except Exception as error:  # whatever one item raises is its own failure
        raise InputError(f"cannot read {shorten(type(item).__name__)}: {describe(error)}") from error


def unwrap(item: Any, modality: str) -> Any:
    """Return ``item[modality]`` if the item is a dict that names its modality, else the item itself."""
    return item[modality] if isinstance(item, dict) and set(item) == {modality} else item


def is_single(inputs: Any) -> bool:
    """Whether ``inputs`` is one item rather than a collection of items."""
    if isinstance(inputs, (str, Path, Image.Image, dict, *BYTES)):
        return True
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "UO":
        return False
    if isinstance(inputs, (np.ndarray, torch.Tensor)):
        return any(inputs.ndim in modality.axes for modality in MODALITIES.values())
    return not (hasattr(inputs, "__iter__") or hasattr(inputs, "__len__"))


def as_items(inputs: Any) -> list[Any]:
    """Return the items of ``inputs`` as a list: a 4-D array or tensor is a batch of images."""
    if hasattr(inputs, "iterrows"):
        raise InputError(f"a DataFrame is no list of items; pass one column of it: {shorten(list(inputs))}.")
    return [inputs] if is_single(inputs) else list(inputs)


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
