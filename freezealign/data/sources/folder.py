"""Pairs from a folder of pictures with captions in text files beside them, or in a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from freezealign.data.sources.source import Columns, PairSource, locate, make_pair, unreadable, with_slashes
from freezealign.data.sources.tables import column_names, read_rows
from freezealign.inputs import is_url

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "captions.csv", "captions.jsonl")
CAPTIONS_LIMIT_BYTES = 16 * 2**20


class PictureFolder(PairSource):
    """The pictures of a folder and its sub-folders, by path; a picture without a caption has an empty list of them.

    A picture's captions are the lines of the ``.txt`` file of the same name; or, if the folder holds a table
    (``METADATA``), or its sub-folders hold one each, the texts of all rows that name it by its path from the table.
    """

    def __init__(self, folder: Path, columns: Columns, tables: Sequence[Path]) -> None:
        self.folder = folder
        self._captions: dict[str, list[Any]] | None = None
        self._unreadable: list[dict[str, Any]] = []
        columns.refuse(["id"] if tables else ["image", "text", "id"], f"the folder {folder}")
        for table in tables:
            self._read_metadata(table, columns)
        self._names = sorted({*find_pictures(folder), *(self._captions or {})})

    def __len__(self) -> int:
        return len(self._names) + len(self._unreadable)

    def _read(self, position: int) -> Iterator[dict[str, Any]]:
        yield from map(self._pair, islice(self._names, position, None))
        yield from islice(self._unreadable, max(position - len(self._names), 0), None)

    def _pair(self, name: str) -> dict[str, Any]:
        try:
            captions = self._read_captions(name) if self._captions is None else self._captions.get(name, [])
        except OSError as error:
            return unreadable(name, f"cannot read the captions of {self.folder / name}: {error}.")
        return make_pair(name, locate(name, self.folder), captions)

    def _read_captions(self, name: str) -> list[str]:
        from freezealign.files import read_limited

        try:
            content = read_limited((self.folder / name).with_suffix(".txt"), CAPTIONS_LIMIT_BYTES)
        except FileNotFoundError:
            return []
        return [line.strip() for line in content.decode("utf-8-sig", "surrogateescape").splitlines() if line.strip()]

    def _read_metadata(self, path: Path, columns: Columns) -> None:
        """Gather the captions by picture; they are held in memory, because rows need not be in order."""
        self._captions = self._captions or {}
        found = column_names(path)
        if "file_name" in found and "image" not in columns.renamed():
            columns = replace(columns, image="file_name")
        columns.check(found, str(path))
        for number, row in enumerate(read_rows(path)):
            name = None if isinstance(row, str) else row.get(columns.image)
            if isinstance(row, str) or not isinstance(name, str) or not name:
                reason = row if isinstance(row, str) else f"column '{columns.image}' names no file: {name!r}."
                self._unreadable.append(unreadable(f"{path.name}, row {number}", f"{path}: {reason}"))
                continue
            text = row.get(columns.text)
            texts = text if isinstance(text, list) else [text]
            if not is_url(name):  # as find_pictures spells it
                name = (path.parent.relative_to(self.folder) / with_slashes(name, path.parent)).as_posix()
            self._captions.setdefault(name, []).extend(texts)


def find_metadata(folder: Path) -> list[Path]:
    """Return the table that goes with the pictures of a folder, or where it has none those of its sub-folders.

    Raises:
        ValueError: If a folder has several.
    """
    for places in ([folder], sorted(path for path in folder.iterdir() if path.is_dir())):
        tables = []
        for place in places:
            found = [place / name for name in METADATA if (place / name).exists()]
            if len(found) > 1:
                raise ValueError(f"{place} holds several tables, {[path.name for path in found]}; leave one there.")
            tables += found
        if tables:
            return tables
    return []


def find_pictures(folder: Path) -> Iterator[str]:
    """Yield the pictures below a folder as relative paths with slashes."""
    from freezealign.images import IMAGE_SUFFIXES

    for path in folder.rglob("*"):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield path.relative_to(folder).as_posix()


def class_folders(root: str | PathLike[str]) -> dict[str, list[Path]]:
    """Return the pictures below each sub-folder of ``root`` under its name, both in the order of their names.

    Raises:
        FileNotFoundError: If there are no sub-folders, or there is no image in one.
    """
    found = {}
    for folder in sorted(path for path in Path(root).glob("*") if path.is_dir()):
        found[folder.name] = [folder / name for name in sorted(find_pictures(folder))]
        if not found[folder.name]:
            raise FileNotFoundError(f"there is no image in '{folder}'; remove the folder if it is no class.")
    if not found:
        raise FileNotFoundError(f"there is no sub-folder in '{root}'; make one for each class.")
    return found
