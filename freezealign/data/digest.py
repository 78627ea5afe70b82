"""What tells pairs from other pairs: a digest that costs little beside reading them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from os import PathLike
from typing import Any

from torch import Tensor

from freezealign.data.pairs import Pair
from freezealign.vectors import as_array

HALF = 6
"""Hexadecimal digits of each half of a pair's digest: enough to see that it is another, and little to keep."""
LETTERS = 2 * HALF
UNKNOWN = "-" * HALF


def pairs_digest(pairs: Iterable[Pair], pixels: bool = True) -> str:
    """Return the digests of pairs, ``LETTERS`` each, one after another.

    The first half of one is of ids, texts, paths, encoded files, and the form of decoded pictures and arrays. The
    second is of what is in these.

    Args:
        pairs: The pairs, not yet read.
        pixels: Whether there is a second half: not where data may be augmented anew each time it is read.
    """
    digests = []
    for pair in pairs:
        items = {key: [_told(item) for item in own] for key, own in pair.items.items()}
        form = _short(json.dumps([pair.id, items], sort_keys=True).encode())
        contents = (_content(item) for own in pair.items.values() for item in own)
        digests.append(form + (_short(*contents) if pixels else UNKNOWN))
    return "".join(digests)


def first_difference(one: str, other: str) -> int | None:
    """Return the number of the first pair whose digest is another, or that only one has; ``None`` if there is none.

    Second halves are compared where both have one.
    """
    for at in range(0, max(len(one), len(other)), LETTERS):
        halves = [(text[at : at + HALF], text[at + HALF : at + LETTERS]) for text in (one, other)]
        (form, content), (other_form, other_content) = halves
        if form != other_form or (content != other_content and UNKNOWN not in (content, other_content)):
            return at // LETTERS
    return None


def _short(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:HALF]


def _told(item: Any) -> Any:
    """Return the form of an item, and of one that is not decoded its content, as JSON."""
    if item is None or isinstance(item, (str, int, float)):
        return item
    if isinstance(item, (bytes, bytearray)):
        return hashlib.sha256(item).hexdigest()
    if isinstance(item, PathLike):
        return str(item)
    if isinstance(item, dict):
        return {str(key): _told(value) for key, value in item.items()}
    facts = [getattr(item, name, None) for name in ("shape", "size", "mode", "filename", "name", "offset")]
    return [type(item).__name__, *(str(fact) for fact in facts if fact is not None and not callable(fact))]


def _content(item: Any) -> bytes:
    """Return what is in a decoded picture or array; nothing of a picture that has a file and so a name."""
    if getattr(item, "filename", None) or not hasattr(item, "shape" if not hasattr(item, "tobytes") else "tobytes"):
        return b""
    if isinstance(item, Tensor):
        item = as_array(item)
    try:
        return bytes(item.tobytes())
    except Exception:  # a closed picture is told as bad when it is read
        return b""
