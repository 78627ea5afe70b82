"""Pools: web-scale collections of pairs whose features lie on disk, and what is known of each pair."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from freezealign.features import FeatureStore, Origin

Modality = Literal["image", "text"]
FIELDS = ("id", "caption", "url", "licence", "similarity")
"""What may be known of a pair."""
SAMPLED_ROWS = 64


class Vectors(Protocol):
    """Vectors that can be read by number."""

    def __len__(self) -> int: ...
    def take(self, index: np.ndarray) -> np.ndarray:
        """Return the vectors of rows ``index`` (n,)."""


class Known(Protocol):
    """What is known of each pair of a pool."""

    @property
    def fields(self) -> Sequence[str]:
        """Names of the fields, of those in ``FIELDS``."""

    def take(self, index: np.ndarray, field: str) -> list[Any]:
        """Return one field of some pairs."""


@dataclass(frozen=True)
class Pool:
    """n pairs, each with a vector of one modality.

    Args:
        name: For messages and reports.
        vectors: (n, d) in any float dtype; they need not have unit length.
        width: d.
        known: Ids, captions and so on; pairs without ids are called by their row.
        origin: The encoder that made the vectors, where that is known.
        store: The feature store it is, if it is one.
        files: What it is read from.
        modality: Of the vectors.
    """

    name: str
    vectors: Vectors
    width: int
    known: Known | None = None
    origin: Origin | None = None
    store: FeatureStore | None = None
    files: tuple[Path, ...] = ()
    modality: Modality = "image"

    def __len__(self) -> int:
        return len(self.vectors)

    def has(self, field: str) -> bool:
        """Whether ``field``, one of ``FIELDS``, is known."""
        return self.known is not None and field in self.known.fields

    def require(self, field: str) -> None:
        """Raise a ``ValueError`` unless ``field``, one of ``FIELDS``, is known."""
        if not self.has(field):
            known = list(self.known.fields) if self.known else "nothing"
            raise ValueError(f"the pool {self.name} does not tell the {field} of its pairs; it tells {known}.")

    def take(self, rows: np.ndarray, field: str) -> list[Any]:
        """Return one field of some pairs.

        Raises:
            ValueError: If it is not known.
        """
        if field == "id" and not self.has("id"):
            return [str(row) for row in rows]
        self.require(field)
        return self.known.take(rows, field) if self.known else []

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
            digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns};".encode())
        return {"rows": len(self), "width": self.width, "content": digest.hexdigest()}
