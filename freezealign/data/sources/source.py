"""What every source of pairs can do, and how a row of one becomes a pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freezealign.inputs import Unreadable, is_url, shorten

Row = Mapping[str, Any] | str
"""The cells by column, or the reason why the row cannot be read."""


class PairSource(ABC):
    """Pairs ``{"id", "image", "text"}`` that can be read again and again, always in the same order."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iter_from(0)

    def iter_from(self, position: int) -> Iterator[dict[str, Any]]:
        """Yield the pairs from ``position`` on, counted from 0, without reading the pictures before it.

        Raises:
            ValueError: If ``position`` is negative.
        """
        if position < 0:
            raise ValueError(f"the position is the number of pairs to leave out, got {position}.")
        return self._read(position)

    @abstractmethod
    def _read(self, position: int) -> Iterator[dict[str, Any]]:
        """Yield the pairs from ``position`` on."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns that hold images, texts and ids."""

    image: str = "image"
    text: str = "text"
    id: str = "id"

    def renamed(self) -> dict[str, str]:
        """Return for each keyword that is not called by its own name its column."""
        return {keyword: column for keyword, column in asdict(self).items() if column != keyword}

    def check(self, found: Sequence[str], where: str) -> None:
        """Raise a ``ValueError`` if a column is missing or there are several; there need be no column ``id``."""
        for keyword, column in asdict(self).items():
            if column not in found and (keyword, column) != ("id", "id"):
                raise ValueError(
                    f"{where}: there is no column '{column}'; the columns are {list(found)}. "
                    f"Say which one to use: {keyword}='…'."
                )
            if found.count(column) > 1:
                raise ValueError(f"{where}: there are {found.count(column)} columns '{column}'; rename all but one.")

    def refuse(self, keywords: Collection[str], where: str) -> None:
        """Raise a ``ValueError`` if one of ``keywords`` was given a column where there can be none."""
        for keyword, column in self.renamed().items():
            if keyword in keywords:
                raise ValueError(f"{where} has no column to choose with {keyword}='{column}'; leave it out.")


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
    """Return a pair; its text, or each of a list of them, is judged when it is read and not before."""
    if isinstance(image, (list, tuple)):
        return unreadable(name, f"expected one image, got {shorten(image)}.")
    return {"id": name.encode("utf-8", "backslashreplace").decode(), "image": image, "text": text}


def unreadable(name: str, reason: str) -> dict[str, Any]:
    """Return a pair that raises an ``InputError`` with the reason when it is read."""
    return make_pair(name, Unreadable(reason), Unreadable(reason))


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
