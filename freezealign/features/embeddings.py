"""Embeddings on disk, in the forms in which they are found, as feature stores.

::

    images.npy, texts.npy            (n, D) each; the names of files, folders and columns are those of the modalities,
    embeddings/                      as clip-retrieval writes them and LAION publishes them
      img_emb/img_emb_0.npy          or images/…, voxels/…
      text_emb/text_emb_0.npy
      metadata/metadata_0.parquet    a row for each row of the .npy files of the same number; may be absent
    part-*.parquet                   tables with columns of vectors
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from freezealign.encoders import FrozenEncoder
from freezealign.features.columns import NpyFile
from freezealign.features.folder import StoreFolder
from freezealign.features.parquet_rows import LISTS, ParquetRows, ParquetVectors
from freezealign.features.store import FeatureStore
from freezealign.files import is_file, is_folder
from freezealign.inputs import Unreadable

FOLDERS = {"image": ("img_emb", "images"), "text": ("text_emb", "texts")}
VECTORS = {"image": ("image_embedding", "img_emb", "embedding"), "text": ("text_embedding", "text_emb", "embedding")}
ALIASES = {name: modality for table in (VECTORS, FOLDERS) for modality, names in table.items() for name in names[:2]}
"""What files, folders and columns of a modality are called; any other name is that of the modality itself."""
COLUMNS = {
    "id": ("id", "key", "image_path", "sample_id", "SAMPLE_ID"),
    "caption": ("caption", "text", "TEXT"),
    "url": ("url", "URL"),
    "licence": ("licence", "license", "LICENSE"),
    "similarity": ("similarity",),
}
"""What may be known of a pair, and what clip-retrieval, img2dataset and LAION call it."""
TEXT, WHOLE, REAL = r"null|(large_)?string", r"null|u?int\d+", "null|halffloat|float|double"
KINDS = {"id": f"{TEXT}|{WHOLE}|{REAL}", "licence": f"{TEXT}|{WHOLE}", "similarity": f"{WHOLE}|{REAL}"}
"""Types of the columns in which it may stand, where they are not those of texts alone."""


def open_embeddings(
    source: str | PathLike[str] | Sequence[str | PathLike[str]],
    columns: Mapping[str, str] | None = None,
    encoders: Mapping[str, FrozenEncoder] | None = None,
    strict: bool = False,
) -> FeatureStore:
    """Open embeddings on disk as a feature store; ``.npy`` files stay on disk, Parquet is read into memory.

    Ids and captions come with clip-retrieval's metadata and with Parquet; a caption that is null or not UTF-8 is empty.

    Args:
        source: The folder of a feature store; a folder with a ``.npy`` file, or a folder of them, for each modality, as
            clip-retrieval writes it; a Parquet file or a folder of them; or several ``.npy`` or Parquet files.
        columns: The column of each modality's vectors in Parquet; by default every column of lists of floats.
        encoders: What made the vectors, as :meth:`~freezealign.FeatureStore.from_arrays` takes it.
        strict: Raise at the first item that cannot be used instead of leaving it out; in Parquet that is also one whose
            vector is null or of another width.

    Raises:
        FileNotFoundError: If there is nothing to read.
        InputError: With ``strict``, at an item that cannot be used.
        ModuleNotFoundError: If pyarrow is not installed and there is Parquet.
        ValueError: If files are damaged, missing or of unequal length, a column is missing, or vectors do not fit.

    >>> store = open_embeddings(["images.npy", "texts.npy"])  # doctest: +SKIP
    """
    files = [Path(source)] if isinstance(source, (str, PathLike)) else list(map(Path, source))
    folder = files[0] if len(files) == 1 and is_folder(files[0]) else None
    if folder is not None:
        if StoreFolder(folder).exists:
            return FeatureStore.open(folder)
        files = [*folder.glob("*/*.npy")] or [*folder.glob("*.npy")] or [*folder.glob("*.parquet")]
    if missing := [str(path) for path in files if not is_file(path)] or ([] if files else [str(source)]):
        raise FileNotFoundError(
            f"there are no embeddings in {missing}: name .npy files, Parquet files, or a folder of them or of "
            "sub-folders of .npy files, as clip-retrieval writes it."
        )
    files = sorted(files, key=natural)
    kinds = {path.suffix.lower() for path in files}
    if kinds == {".parquet"}:
        return _from_tables(files, columns or {}, encoders, strict)
    if kinds != {".npy"} or columns:
        raise ValueError(f"embeddings are .npy files, or Parquet files with columns=…, not {sorted(kinds)}.")
    groups: dict[str, list[Path]] = {}
    for path in files:
        name = re.sub(r"[-_]\d+$", "", path.stem) if folder in (None, path.parent) else path.parent.name
        groups.setdefault(ALIASES.get(name, name), []).append(path)
    metadata = sorted((folder / "metadata").glob("*.parquet"), key=natural) if folder is not None else []
    return _from_files(groups, metadata, encoders, strict)


def open_sources(
    sources: Sequence[str], columns: Mapping[str, str], encoders: Mapping[str, FrozenEncoder]
) -> list[FeatureStore]:
    """Open what a command line names: ``.npy`` files together, or as MODALITY=PATH, anything else each by itself."""
    named = [source.partition("=") for source in sources if "=" in source and not Path(source).exists()]
    files = [source for source in sources if source.endswith(".npy") and Path(source).exists()]
    others = [source for source in sources if source not in files and source not in map("".join, named)]
    stores = [FeatureStore.from_arrays({name: path for name, _, path in named}, encoders=encoders)] if named else []
    stores += [open_embeddings(files, encoders=encoders)] if files else []
    return stores + [open_embeddings(source, columns, encoders) for source in others]


def _from_tables(
    paths: Sequence[Path],
    columns: Mapping[str, str],
    encoders: Mapping[str, FrozenEncoder] | None,
    strict: bool,
) -> FeatureStore:
    table = ParquetRows(paths)
    lists = [name for name in table.columns if all(map(LISTS.fullmatch, table.kinds(name)))]
    chosen = dict(columns) or {ALIASES.get(name, name): name for name in lists}
    if not chosen or not set(chosen.values()) <= set(table.columns) or (not columns and len(chosen) < len(lists)):
        raise ValueError(f"{paths[0]}: name the columns of vectors, columns={{'image': …}}; it has {table.columns}.")
    rows = np.arange(len(table))
    arrays = {modality: ParquetVectors(table, column).take(rows) for modality, column in chosen.items()}
    return FeatureStore.from_arrays(arrays, **_names(table, arrays), encoders=encoders, strict=strict)


def _from_files(
    groups: Mapping[str, Sequence[Path]],
    metadata: Sequence[Path],
    encoders: Mapping[str, FrozenEncoder] | None,
    strict: bool,
) -> FeatureStore:
    for paths in groups.values():
        if len({path.name for path in paths}) < len(paths):
            named = "FeatureStore.from_arrays({'image': …, 'text': …})"
            raise ValueError(f"several files are called {paths[0].name}: say which modality each is, {named}.")
    table = ParquetRows(metadata) if metadata else None
    if table is not None or any(len(paths) > 1 for paths in groups.values()):
        numbered = [(paths, [len(NpyFile(path)) for path in paths]) for paths in groups.values()]
        for others in [*numbered, *([] if table is None else [(table.paths, table.sizes)])]:
            check_numbered(*numbered[0], *others)
    known = {} if table is None else _names(table, groups)
    return FeatureStore.from_arrays(groups, **known, encoders=encoders, strict=strict)


def _names(table: ParquetRows, modalities: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the ids and captions of all rows, where they are known, as arguments."""
    known, rows = known_columns(table), np.arange(len(table))
    found = {}
    if "id" in known:
        ids = decoded(known["id"], rows, "id")
        absent = (type(None), Unreadable)
        found["ids"] = [str(row if isinstance(name, absent) else name) for row, name in enumerate(ids)]
    if "caption" in known and "text" in modalities:
        found["captions"] = [text if isinstance(text, str) else "" for text in decoded(known["caption"], rows, "text")]
    return found


def known_columns(table: ParquetRows) -> Mapping[str, Callable[[np.ndarray], list[Any]]]:
    """Return what the columns tell that are of their field's type; an id of another type is refused."""
    known = {}
    for key, names in COLUMNS.items():
        name = next((name for name in names if name in table.columns), "")
        odd = [kind for kind in table.kinds(name) if not re.fullmatch(KINDS.get(key, TEXT), kind)] if name else []
        if odd and key == "id":
            raise ValueError(f"{table.paths[0]}: column '{name}' is {odd[0]}, which no id is; rename it.")
        if name and not odd:
            known[key] = partial(table.values, column=name)
    return known


def decoded(take: Callable[[np.ndarray], list[Any]], rows: np.ndarray, field: str) -> list[Any]:
    """Return what ``take`` gives; where that is nothing because some values are not UTF-8, find which."""
    try:
        return take(rows)
    except UnicodeDecodeError:
        if len(rows) == 1:
            return [Unreadable(f"its {field} is not UTF-8")]
        half = len(rows) // 2
        return decoded(take, rows[:half], field) + decoded(take, rows[half:], field)


def check_numbered(files: Sequence[Path], sizes: Sequence[int], others: Sequence[Path], lengths: Sequence[int]) -> None:
    """Raise a ``ValueError`` unless each of some files goes with another one of the same number and length."""
    numbers, theirs = ([tuple(map(int, re.findall(r"\d+", path.stem))) for path in paths] for paths in (files, others))
    if numbers != theirs or len(set(numbers)) < len(numbers):
        odd = sorted({*numbers} ^ {*theirs})[:5] or "each number once"
        raise ValueError(
            f"the files that {files[0]} and {others[0]} are the first of go together by number; one side lacks {odd}."
        )
    for file, size, other, length in zip(files, sizes, others, lengths):
        if size != length:
            raise ValueError(f"{file} has {size:,} rows and {other} has {length:,}; fetch the shorter one again.")


def natural(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts 2 before 10, and otherwise by name."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
