"""The forms in which pools are found.

::

    features/            a FeatureStore, as ``freezealign extract`` writes it
    embeddings/          .npy files, as clip-retrieval writes them and LAION publishes them
      img_emb/img_emb_0.npy            or images/…
      text_emb/text_emb_0.npy          or texts/…
      metadata/metadata_0.parquet      a row for each row of the .npy files of the same number; may be absent
    part-*.parquet       tables with a column of vectors
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from freezealign.curation.parquet_rows import ParquetRows, ParquetVectors
from freezealign.curation.pools import Modality, Pool
from freezealign.features import FeatureStore
from freezealign.features.columns import Column, NpyFile
from freezealign.files import is_file, is_folder

FOLDERS = {"image": ("img_emb", "images"), "text": ("text_emb", "texts")}
VECTORS = {"image": ("image_embedding", "img_emb", "embedding"), "text": ("text_embedding", "text_emb", "embedding")}
COLUMNS = {
    "id": ("id", "key", "image_path", "sample_id", "SAMPLE_ID"),
    "caption": ("caption", "text", "TEXT"),
    "url": ("url", "URL"),
    "licence": ("licence", "license", "LICENSE"),
    "similarity": ("similarity",),
}
"""What clip-retrieval, img2dataset and LAION call what is known of a pair."""


def open_pool(source: str | PathLike[str] | FeatureStore, modality: Modality = "image", column: str = "") -> Pool:
    """Open a pool; no more is read than tells its size.

    Args:
        source: A feature store or its folder, a folder of ``.npy`` files, a Parquet file or a folder of them.
        modality: Whose vectors to use.
        column: The column of vectors in Parquet files, where it is not one of ``VECTORS``.

    Raises:
        FileNotFoundError: If there is nothing to read.
        ValueError: If files are damaged, missing or of unequal length, or there are no vectors of ``modality``.
    """
    if isinstance(source, FeatureStore):
        return _from_store(source, modality, repr(source))
    path = Path(source).resolve()  # other machines may work elsewhere
    if is_folder(path) and (path / "manifest.json").is_file():
        return _from_store(FeatureStore.open(path), modality, str(path))
    if is_file(path):
        return _from_tables([path], modality, column)
    if (files := sorted(path.glob("*.parquet"), key=_natural)) and not any(path.glob("*.npy")):
        return _from_tables(files, modality, column)
    return _from_arrays(path, modality)


@dataclass(frozen=True)
class _StoreVectors:
    """The first row of each item: the picture itself rather than a view of it, its first caption."""

    store: FeatureStore
    modality: str

    def __len__(self) -> int:
        return len(self.store)

    def take(self, index: np.ndarray) -> np.ndarray:
        items = self.store._at(index)
        rows = self.store.rows[self.modality].starts(items)
        vectors: np.ndarray = self.store.features[self.modality].load(rows)["sentence_embedding"].numpy()
        return vectors


@dataclass(frozen=True)
class _StoreKnown:
    store: FeatureStore

    @property
    def fields(self) -> Sequence[str]:
        return ("id", "caption") if "text" in self.store.features else ("id",)

    def take(self, index: np.ndarray, field: str) -> list[Any]:
        selected = self.store.select(index)
        if field == "id":
            return selected.ids
        text = self.store.features["text"]
        return text.captions(self.store.rows["text"].starts(self.store._at(index)))


def _from_store(store: FeatureStore, modality: Modality, name: str) -> Pool:
    if modality not in store.features:
        raise ValueError(f"the pool {name} has no features of {modality}; it has {sorted(store.features)}.")
    features = store.features[modality]
    if features.tokens is not None:
        raise ValueError(f"the pool {name} holds tokens; curation needs vectors: extract it with level='pooled'.")
    width = features.columns["sentence_embedding"].parts[0].shape[1]
    parts = [part.path for column in store.columns.values() for part in column.parts if isinstance(part, NpyFile)]
    known = _StoreKnown(store)
    return Pool(name, _StoreVectors(store, modality), width, known, features.origin, store, tuple(parts), modality)


@dataclass(frozen=True)
class _TableKnown:
    table: ParquetRows
    names: dict[str, str]

    @property
    def fields(self) -> Sequence[str]:
        return list(self.names)

    def take(self, index: np.ndarray, field: str) -> list[Any]:
        return self.table.values(index, self.names[field])


def _known(table: ParquetRows) -> _TableKnown:
    found = {key: next((name for name in names if name in table.columns), None) for key, names in COLUMNS.items()}
    return _TableKnown(table, {key: name for key, name in found.items() if name is not None})


def _from_tables(paths: Sequence[Path], modality: Modality, column: str) -> Pool:
    table = ParquetRows(paths)
    names = (column,) if column else VECTORS[modality]
    name = next((name for name in names if name in table.columns), None)
    if name is None:
        raise ValueError(f"{paths[0]}: none of {names} is a column; choose the vectors' among {table.columns}.")
    vectors, place = ParquetVectors.of(table, name), paths[0] if len(paths) == 1 else paths[0].parent
    return Pool(str(place), vectors, vectors.width, _known(table), files=tuple(paths), modality=modality)


def _from_arrays(path: Path, modality: Modality) -> Pool:
    folder = next((path / name for name in FOLDERS[modality] if (path / name).is_dir()), path)
    files = sorted(folder.glob("*.npy"), key=_natural)
    if not files:
        raise FileNotFoundError(
            f"there is no pool of {modality} features in {path}: no manifest.json of a feature store, no .npy files in "
            f"it or in one of {FOLDERS[modality]}, no .parquet files."
        )
    arrays = [NpyFile(file) for file in files]
    for array in arrays:
        _check_array(array, arrays[0])
    column, width = Column(arrays), arrays[0].shape[1]
    tables = sorted((path / "metadata").glob("*.parquet"), key=_natural)
    if not tables:
        return Pool(str(path), column, width, files=tuple(files), modality=modality)
    table = ParquetRows(tables)
    _check_lengths(files, arrays, tables, table.sizes)
    return Pool(str(path), column, width, _known(table), files=(*files, *tables), modality=modality)


def _check_array(array: NpyFile, first: NpyFile) -> None:
    """Raise a ``ValueError`` unless a file can be read row by row together with the first."""
    if len(array.shape) != 2 or array.shape[1] != first.shape[1]:
        raise ValueError(f"{array.path} has the shape {array.shape}; vectors of one width are needed: {first.path}.")
    if array.dtype != first.dtype or array.dtype.kind != "f" or not array.dtype.isnative:
        raise ValueError(
            f"{array.path} is {array.dtype}, and {first.path} is {first.dtype}; all files of a pool need one float "
            "dtype in this machine's order of bytes."
        )
    if not array.map().flags.c_contiguous:
        raise ValueError(f"{array.path} is stored column by column; write it again with numpy.ascontiguousarray.")


def _check_lengths(files: Sequence[Path], arrays: Sequence[NpyFile], tables: Sequence[Path], sizes: list[int]) -> None:
    """Raise a ``ValueError`` unless each array has a table of the same number and length."""
    numbers, others = [_numbers(file) for file in files], [_numbers(file) for file in tables]
    if numbers != others or len(set(numbers)) < len(numbers):
        odd = sorted({*numbers} ^ {*others})[:5] or "each number once"
        raise ValueError(f"{files[0].parent}: vectors and metadata go together by number; one of them lacks {odd}.")
    for file, array, table, size in zip(files, arrays, tables, sizes):
        if len(array) != size:
            raise ValueError(f"{file} has {len(array):,} rows and {table} has {size:,}; fetch the shorter one again.")


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", path.stem)))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts 2 before 10, and otherwise by name."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
