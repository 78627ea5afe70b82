"""One row of a table becomes one pair, and a row that cannot be read a pair that says why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freezealign.data.sources.source import Columns
from freezealign.inputs import Unreadable, is_url, shorten

Row = Mapping[str, Any] | str
"""The cells by column, or the reason why the row cannot be read."""


def row_to_pair(row: Row, number: int, columns: Columns, folder: Path) -> dict[str, Any]:
    """Return the pair that a row holds; without an id it is called by its number.

    Args:
        row: The row.
        number: Its number in the table, from 0.
        columns: The names of the columns.
        folder: What relative paths are relative to.
    """
    if isinstance(row, str):
        return unreadable(str(number), row)
    name = row.get(columns.id)
    name = str(number) if name is None or name == "" else str(name)
    return make_pair(name, locate(row.get(columns.image), folder), row.get(columns.text))


def make_pair(name: str, image: Any, text: Any) -> dict[str, Any]:
    """Return a pair; one without a text has an empty list of them."""
    name = name.encode("utf-8", "backslashreplace").decode()
    if isinstance(image, (list, tuple)):
        return unreadable(name, f"expected one image, got {shorten(image)}.")
    if text is None or text == "":
        text = []
    if any(map(_is_undecodable, text if isinstance(text, list) else [text])):
        return unreadable(name, f"the text is not UTF-8: {shorten(text)}.")
    return {"id": name, "image": image, "text": text}


def unreadable(name: str, reason: str) -> dict[str, Any]:
    """Return a pair whose image raises an ``InputError`` with the reason when it is read."""
    return {"id": name, "image": Unreadable(reason), "text": reason}


def locate(image: Any, folder: Path) -> Any:
    """Return an image as ``read_image`` takes it: a relative path becomes one below ``folder``."""
    if isinstance(image, Mapping) and not image.get("bytes"):
        image = image.get("path")
    if not isinstance(image, str) or is_url(image):
        return image
    return folder / with_slashes(image, folder) if image else None


def with_slashes(name: str, folder: Path) -> str:
    """Return a relative path with slashes, if it has backslashes, as Windows writes them, and names no file so."""
    from freezealign.files import is_file

    return name.replace("\\", "/") if "\\" in name and not is_file(folder / name) else name


def _is_undecodable(text: Any) -> bool:
    """Whether a string holds a lone surrogate: a byte that is no UTF-8 became one, or JSON spelled it out."""
    try:
        return isinstance(text, str) and not text.encode()
    except UnicodeEncodeError:
        return True
