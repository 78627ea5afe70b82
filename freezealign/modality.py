"""Modalities: for each, how an item is recognised, read, probed, pooled and augmented. One table, open to more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from freezealign.images import ENCODED, IMAGE_SUFFIXES, random_view, read_image
from freezealign.inputs import DownloadError, InputError, Unreadable, shorten
from freezealign.vectors import as_array

TEXT_LIMIT = 1_000_000
"""Characters of the longest text that is read: no encoder reads as many, and cutting one into tokens takes seconds."""


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
        InputError: If it is not a string, has nothing but white space, over a million characters, or a lone surrogate,
            which stands for a byte that is no UTF-8.
    """
    if not isinstance(item, str):
        raise InputError(f"expected a text, got {shorten(item)} ({type(item).__name__}).")
    if not item.strip():
        raise InputError(f"the text is empty: {shorten(item)}.")
    if len(item) > TEXT_LIMIT:
        raise InputError(f"the text has {len(item):,} characters, at most {TEXT_LIMIT:,} are read: {shorten(item)}.")
    if any("\ud800" <= letter <= "\udfff" for letter in item):
        raise InputError(f"the text is not UTF-8: {shorten(item)}.")
    return item


def _is_image(item: Any) -> bool:
    return callable(item) or isinstance(item, (*ENCODED, Image.Image, Path, np.ndarray, torch.Tensor, dict))


MODALITIES: dict[str, Modality] = {}


def register_modality(name: str, **settings: Any) -> None:
    """Make a kind of input known: keyword arguments are the fields of :class:`Modality`.

    A tower may have any name without this, and its encoder then takes items as they are; this is for modalities that
    ``encode`` is to recognise, read, probe or augment.

    >>> register_modality("voxels", axes=(4,), probe=np.zeros((1, 8, 8, 8), np.float32))
    """
    MODALITIES[name] = Modality(name, **settings)


def read_vector(item: Any) -> np.ndarray:
    """Return numbers in a row, an array, tensor or list of floats (D,), as float32.

    Raises:
        InputError: If it is anything else, or a number is NaN, infinite or beyond float32.
    """
    array = as_array(item)
    if array.ndim != 1 or array.dtype.kind != "f":
        found = f"{array.dtype} {array.shape}" if hasattr(item, "dtype") else shorten(item)
        raise InputError(f"expected a vector (D,) of floats, made elsewhere, got {type(item).__name__}: {found}.")
    with np.errstate(over="ignore"):
        vector = array.astype(np.float32, copy=False)
    if not np.isfinite(vector).all():
        raise InputError("the vector holds NaN, infinity or a number beyond float32.")
    return vector


def _is_vector(item: Any) -> bool:
    return isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 1


register_modality("vector", read=read_vector, recognises=_is_vector, axes=(1,))
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
    if item is None:
        raise InputError(f"got None where {modality} was expected.")
    if isinstance(item, Unreadable):
        item()
    try:
        return modality_of(modality).read(item)
    except (InputError, DownloadError):
        raise
    except Exception as error:  # whatever one item trips over is that item's failure
        raise InputError(f"cannot read {shorten(item)}: {type(error).__name__}: {error}") from error


def read_items(items: Sequence[Any], read: Callable[[Any], Any]) -> tuple[list[Any], dict[int, str]]:
    """Read what a pair has of one modality: what of it is good, and by place what is wrong with the rest.

    This is the one rule for a bad caption among good ones: it costs itself alone.
    """
    good, bad = [], {}
    for place, item in enumerate(items):
        try:
            good.append(read(item))
        except InputError as error:
            bad[place] = str(error)
    return good, bad


def unwrap(item: Any, modality: str) -> Any:
    """Return ``item[modality]`` if the item is a dict that names its modality, else the item itself."""
    return item[modality] if isinstance(item, dict) and set(item) == {modality} else item
