"""Pools: web-scale collections of pairs whose features lie on disk, what is known of each pair, and their forms.

::

    features/            a FeatureStore, as ``freezealign extract`` writes it
    embeddings/          .npy files, as clip-retrieval writes them and LAION publishes them
      img_emb/img_emb_0.npy            or images/…
      text_emb/text_emb_0.npy          or texts/…
      metadata/metadata_0.parquet      a row for each row of the .npy files of the same number; may be absent
    part-*.parquet       tables with a column of vectors
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from freezealign.features import FeatureStore, Origin
from freezealign.features.columns import Column, NpyFile
from freezealign.features.embeddings import FOLDERS, VECTORS, check_numbered, decoded, known_columns, natural
from freezealign.features.folder import StoreFolder
from freezealign.features.parquet_rows import ParquetRows, ParquetVectors
from freezealign.files import is_file, is_folder

Modality = Literal["image", "text"]
SAMPLED_ROWS = 64


class Vectors(Protocol):
    """Vectors that can be read by number."""

    def __len__(self) -> int: ...
    def take(self, index: np.ndarray) -> np.ndarray:
        """Return the vectors of rows ``index`` (n,)."""


@dataclass(frozen=True)
class Pool:
    """n pairs, each with a vector of one modality.

    Args:
        name: For messages and reports.
        vectors: (n, d) in any float dtype; they need not have unit length.
        width: d.
        known: For each field that is known, of those in ``COLUMNS``, a function from rows (m,) to their m values;
            pairs without ids are called by their row.
        origin: The encoder that made the vectors, where that is known.
        store: The feature store it is, if it is one.
        files: What it is read from.
        modality: Of the vectors.
    """

    name: str
    vectors: Vectors
    width: int
    known: Mapping[str, Callable[[np.ndarray], list[Any]]] = field(default_factory=dict)
    origin: Origin | None = None
    store: FeatureStore | None = None
    files: tuple[Path, ...] = ()
    modality: Modality = "image"

    def __len__(self) -> int:
        return len(self.vectors)

    def has(self, field: str) -> bool:
        """Whether ``field``, one of ``COLUMNS``, is known."""
        return field in self.known

    def require(self, field: str) -> None:
        """Raise a ``ValueError`` unless ``field``, one of ``COLUMNS``, is known, or is the id, which a row replaces."""
        if field != "id" and not self.has(field):
            known = list(self.known) or "nothing"
            raise ValueError(f"the pool {self.name} does not tell the {field} of its pairs; it tells {known}.")

    def take(self, rows: np.ndarray, field: str) -> list[Any]:
        """Return one field of some pairs: ``None`` where there is none, an ``Unreadable`` where it cannot be read.

        Raises:
            ValueError: If it is not known.
        """
        self.require(field)
        return decoded(self.known[field], rows, field) if self.has(field) else [str(row) for row in rows]

    def compare(self, what: str, width: int, origin: Origin | None) -> None:
        """Raise a ``ValueError`` if the vectors cannot be compared with others, by their widths and known encoders."""
        if width != self.width:
            raise ValueError(
                f"{what} are {width} wide, the vectors of {self.name} {self.width}; make both with one encoder."
            )
        if origin is not None and self.origin is not None:
            self.origin.check("pool", origin)

    def all_vectors(self) -> np.ndarray:
        """Return all vectors (m, d); of a feature store every view and caption of each item."""
        if self.store is not None:
            vectors: np.ndarray = self.store[self.modality].vectors().numpy()
            return vectors
        return self.vectors.take(np.arange(len(self)))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What tells this pool from another, as JSON: its size, some vectors, and size and time of its files."""
        rows = np.unique(np.linspace(0, len(self) - 1, SAMPLED_ROWS).astype(np.int64))
        digest = hashlib.sha256(np.ascontiguousarray(self.vectors.take(rows)).tobytes())
        for file in self.files:
            told = f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns};"
            digest.update(told.encode("utf-8", "surrogatepass"))
        return {"rows": len(self), "width": self.width, "content": digest.hexdigest()}


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
    if is_folder(path) and StoreFolder(path).exists:
        return _from_store(FeatureStore.open(path), modality, str(path))
    if is_file(path):
        return _from_tables([path], modality, column)
    if (files := sorted(path.glob("*.parquet"), key=natural)) and not any(path.glob("*.npy")):
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
        rows = self.store.rows[self.modality].starts(self.store._at(index))
        vectors: np.ndarray = self.store.features[self.modality].load(rows)["sentence_embedding"].numpy()
        return vectors


def _store_values(store: FeatureStore, field: str, index: np.ndarray) -> list[str]:
    if field == "id":
        return store.select(index).ids
    return store.features["text"].captions(store.rows["text"].starts(store._at(index)))


def _from_store(store: FeatureStore, modality: Modality, name: str) -> Pool:
    if modality not in store.features:
        raise ValueError(f"the pool {name} has no features of {modality}; it has {sorted(store.features)}.")
    features = store.features[modality]
    if features.tokens is not None:
        raise ValueError(f"the pool {name} holds tokens; curation needs vectors: extract it with level='pooled'.")
    parts = [part.path for column in store.columns.values() for part in column.parts if isinstance(part, NpyFile)]
    has_captions = "text" in store.features and store.features["text"].texts is not None
    fields = ("id", "caption") if has_captions else ("id",)
    known = {field: partial(_store_values, store, field) for field in fields}
    vectors = _StoreVectors(store, modality)
    return Pool(name, vectors, features.width, known, features.origin, store, tuple(parts), modality)


def _from_tables(paths: Sequence[Path], modality: Modality, column: str) -> Pool:
    table = ParquetRows(paths)
    names = (column,) if column else VECTORS[modality]
    name = next((name for name in names if name in table.columns), None)
    if name is None:
        raise ValueError(f"{paths[0]}: none of {names} is a column; choose the vectors' among {table.columns}.")
    vectors, place = ParquetVectors(table, name), paths[0] if len(paths) == 1 else paths[0].parent
    return Pool(str(place), vectors, vectors.width, known_columns(table), files=tuple(paths), modality=modality)


def _from_arrays(path: Path, modality: Modality) -> Pool:
    folder = next((path / name for name in FOLDERS[modality] if (path / name).is_dir()), path)
    files = sorted(folder.glob("*.npy"), key=natural)
    if not files:
        raise FileNotFoundError(
            f"there is no pool of {modality} features in {path}: no manifest.json of a feature store, no .npy files in "
            f"it or in one of {FOLDERS[modality]}, no .parquet files."
        )
    arrays = [NpyFile(file) for file in files]
    for array in arrays:
        _check_array(array, arrays[0])
    tables = sorted((path / "metadata").glob("*.parquet"), key=natural)
    table = ParquetRows(tables) if tables else None
    if table is not None:
        check_numbered(files, list(map(len, arrays)), table.paths, table.sizes)
    known = {} if table is None else known_columns(table)
    return Pool(str(path), Column(arrays), arrays[0].shape[1], known, files=(*files, *tables), modality=modality)


def _check_array(array: NpyFile, first: NpyFile) -> None:
    """Raise a ``ValueError`` unless a file can be read row by row together with the first."""
    if len(array.shape) != 2 or array.shape[1] != first.shape[1]:
        raise ValueError(f"{array.path} has the shape {array.shape}; vectors of one width are needed: {first.path}.")
    if array.dtype != first.dtype or array.dtype.str[1:] not in ("f2", "f4", "f8") or not array.dtype.isnative:
        raise ValueError(
            f"{array.path} is {array.dtype}, and {first.path} is {first.dtype}; all files of a pool need one float "
            "dtype of at most 8 bytes in this machine's order."
        )
