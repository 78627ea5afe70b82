"""Open whatever a path names as pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from freezealign.data.sources.folder import PictureFolder, find_metadata, find_pictures
from freezealign.data.sources.objects import rename_columns
from freezealign.data.sources.parquet import ParquetTable
from freezealign.data.sources.pattern import expand
from freezealign.data.sources.shards import Shards
from freezealign.data.sources.source import Columns, PairSource
from freezealign.data.sources.text_table import READERS, TextTable, table_suffix

FORMS = (
    "a folder of pictures with captions, a .csv, .tsv, .jsonl (each also .gz) or .parquet file, a folder of .parquet "
    "files, or webdataset shards: a .tar file, a folder of them, or a pattern such as '{00000..00012}.tar'"
)


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
        TypeError: If ``source`` is neither a path nor an iterable of pairs.
        ValueError: If the suffix is unknown, a file is not what its suffix says, or a column is missing.
    """
    from freezealign.files import is_file, is_folder

    columns = Columns(image, text, id)
    if not isinstance(source, (str, PathLike)):
        return rename_columns(source, columns)
    path = Path(source)
    if is_folder(path):
        return _open_folder(path, columns)
    return _open_files([path] if is_file(path) else _expand(source), columns)


def _expand(source: str | PathLike[str]) -> list[Path]:
    from freezealign.files import is_file

    paths = expand(str(source))
    missing = [path for path in paths if not is_file(path)]
    if missing and len(paths) == 1:
        raise FileNotFoundError(f"there is no file or folder '{source}'. Pairs are read from {FORMS}.")
    if missing:
        raise FileNotFoundError(
            f"'{source}': {len(missing)} of {len(paths)} files are missing, the first is '{missing[0]}'."
        )
    return paths


def _open_folder(folder: Path, columns: Columns) -> PairSource:
    if shards := sorted(folder.glob("*.tar")):
        return Shards(shards, columns)
    if find_metadata(folder) or any(True for _ in find_pictures(folder)):
        return PictureFolder(folder, columns)
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
