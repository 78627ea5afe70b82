"""Open whatever a path, a pattern or an object holds as pairs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from freezealign.data.sources.folder import PictureFolder, find_metadata, find_pictures
from freezealign.data.sources.shards import Shards
from freezealign.data.sources.source import Columns, PairSource
from freezealign.data.sources.tables import READERS, ParquetTable, TextTable, table_suffix

FORMS = (
    "a folder of pictures with captions, a .csv, .tsv, .jsonl (each also .gz) or .parquet file, a folder of .parquet "
    "files, or webdataset shards: a .tar file, a folder of them, or a pattern such as '{00000..00012}.tar'"
)
FILE_LIMIT = 1_000_000
"""Most names that the braces of a pattern may stand for."""


def open_pairs(
    source: str | PathLike[str] | Iterable[Any], *, image: str = "image", text: str = "text", id: str = "id"
) -> Any:
    """Return the pairs of a source as an iterable of ``{"id": str, "image": …, "text": str | list[str]}``.

    Nothing is decoded here, and no bad row ends the iteration: it becomes a pair without an image, without a text, or
    with an image that raises an ``InputError`` when read, so that feature extraction lists it with its reason.

    Args:
        source: A path, or an iterable of pairs, which is returned with its columns renamed. A path names a folder of
            pictures with captions, a table (CSV, TSV, JSON lines, Parquet), or webdataset shards. A folder is read as
            the first of these that it holds: ``.tar`` files, a table of captions, pictures, ``.parquet`` files.
        image: The column of images: paths relative to the table's folder, http(s) addresses, bytes, or
            ``{"bytes", "path"}`` as ``datasets`` stores them.
        text: The column of texts, each a string or a list of strings; for shards a key of the samples' ``.json``.
        id: The column of ids. Without one, pairs are called by the path of the picture, the key of the sample, or the
            number of the row.

    Returns:
        For a path a :class:`~freezealign.data.sources.source.PairSource`.

    Raises:
        FileNotFoundError: If there is no such path, or nothing to read in the folder.
        ModuleNotFoundError: If reading this kind of source takes a package that is not installed.
        OSError: If a path is a pipe, a socket or a device.
        TypeError: If ``source`` is neither a path nor an iterable of pairs.
        ValueError: If the suffix is unknown, a file is not what its suffix says, or a column is missing.
    """
    from freezealign.files import is_folder

    columns = Columns(image, text, id)
    if not isinstance(source, (str, PathLike)):
        return rename_columns(source, columns)
    path = Path(source)
    return _open_folder(path, columns) if is_folder(path) else _open_files(find_files(source), columns)


def find_files(source: str | PathLike[str]) -> list[Path]:
    """Return the files that a path or a pattern names, after a check that they are there."""
    paths = expand(str(source)) if _is_missing(Path(source)) else [Path(source)]
    if missing := [path for path in paths if _is_missing(path)]:
        if len(paths) == 1:
            raise FileNotFoundError(f"there is no file or folder '{source}'. Pairs are read from {FORMS}.")
        count = f"{len(missing)} of {len(paths)}"
        raise FileNotFoundError(f"'{source}': {count} files are missing, the first is '{missing[0]}'.")
    return paths


def _is_missing(path: Path) -> bool:
    """Whether there is nothing of this name; raise an ``OSError`` if it is a pipe or the like."""
    from freezealign.files import check_file

    try:
        check_file(path)
    except FileNotFoundError:
        return True
    return False


def expand(pattern: str) -> list[Path]:
    """Return the paths that a pattern names: braces such as ``{000..012}`` in their order, ``*`` and ``?`` sorted.

    A name without any of these, or that matches nothing, stays as it is.
    """
    names = [pattern]
    if "{" in pattern:
        try:
            from braceexpand import braceexpand  # webdataset brings it
        except ModuleNotFoundError:
            raise ModuleNotFoundError(f"'{pattern}' needs webdataset: pip install 'freezealign[web]'") from None
        ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)
        count = math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges)
        names = list(islice(braceexpand(pattern), FILE_LIMIT + 1)) if count <= FILE_LIMIT else []
        if not 0 < len(names) <= FILE_LIMIT:
            raise ValueError(f"'{pattern}' stands for more than {FILE_LIMIT:,} names.")
    paths = []
    for path in map(Path, names):
        is_pattern = set("*?[") & set(str(path))
        matches = Path(path.anchor).glob(str(path.relative_to(path.anchor))) if is_pattern else ()
        paths += sorted(matches) or [path]
    return paths


def _open_folder(folder: Path, columns: Columns) -> PairSource:
    if shards := sorted(folder.glob("*.tar")):
        return Shards(shards, columns)
    metadata = find_metadata(folder)
    if metadata or any(True for _ in find_pictures(folder)):
        return PictureFolder(folder, columns, metadata)
    if tables := sorted(folder.glob("*.parquet")):
        return ParquetTable(tables, columns)
    raise FileNotFoundError(f"there is nothing to read in the folder '{folder}'. Pairs are read from {FORMS}.")


def _open_files(paths: Sequence[Path], columns: Columns) -> PairSource:
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes == {".tar"}:
        return Shards(paths, columns)
    if suffixes == {".parquet"}:
        return ParquetTable(paths, columns)
    if len(paths) == 1 and table_suffix(paths[0]) in READERS:
        return TextTable(paths[0], columns)
    raise ValueError(f"cannot read pairs from {[str(path) for path in paths[:3]]}. They are read from {FORMS}.")


def rename_columns(data: Any, columns: Columns) -> Any:
    """Return ``data`` itself, or where a column was chosen a view of it with that column renamed."""
    if isinstance(data, Mapping):
        raise TypeError(f"a {type(data).__name__} is no sequence of pairs; pass one of its values: {list(data)}.")
    if not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise TypeError(f"pairs come from a path or an iterable, not from {type(data).__name__}.")
    names = {column: keyword for keyword, column in columns.renamed().items()}
    if not names:
        return data
    if type(data).__module__.startswith("datasets."):
        if (found := data.column_names) is not None:  # a stream may not know
            columns.check(found, "the data set")
            data = data.remove_columns([name for name in names.values() if name in found and name not in names])
        return data.rename_columns(names)
    has_positions = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return _RenamedSequence(data, names) if has_positions else _Renamed(data, names)


class _Renamed:
    def __init__(self, data: Any, names: Mapping[str, str]) -> None:
        self.renamed, self.names = data, names

    def __iter__(self) -> Iterator[Any]:
        return map(self._rename, self.renamed)

    def _rename(self, element: Any) -> Any:
        if not isinstance(element, Mapping):
            return element
        replaced = set(self.names.values()) - set(self.names)
        return {self.names.get(name, name): value for name, value in element.items() if name not in replaced}


class _RenamedSequence(_Renamed):
    def __len__(self) -> int:
        return len(self.renamed)

    def __getitem__(self, index: int) -> Any:
        return self._rename(self.renamed[index])
