"""Rows of Parquet files, read by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from freezealign.data.sources.parquet import open_parquet


class ParquetRows:
    """The rows of several files, numbered through; a row group is read at a time, and the last one is kept.

    Args:
        paths: The files, in order.

    Raises:
        ModuleNotFoundError: If pyarrow is not installed.
        ValueError: If a file is not readable.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files = [open_parquet(path) for path in paths]
        self.paths = list(paths)
        groups = [
            (number, group, file.metadata.row_group(group).num_rows)
            for number, file in enumerate(self.files)
            for group in range(file.num_row_groups)
        ]
        self._groups = [group[:2] for group in groups]
        self._starts = np.cumsum([0, *(size for *_, size in groups)])
        self._last: tuple[tuple[int, str], Any] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def columns(self) -> list[str]:
        """Names of the columns that all files have."""
        common = set.intersection(*(set(file.schema_arrow.names) for file in self.files))
        return [name for name in self.files[0].schema_arrow.names if name in common]

    @property
    def sizes(self) -> list[int]:
        """Rows of each file."""
        return [file.metadata.num_rows for file in self.files]

    def take(self, index: np.ndarray, column: str) -> Any:
        """Return one column of some rows as a pyarrow array."""
        import pyarrow

        owners = np.searchsorted(self._starts, index, side="right") - 1
        order = np.argsort(owners, kind="stable")
        bounds = np.flatnonzero(np.diff(owners[order])) + 1
        parts = []
        for some in np.split(order, bounds) if len(order) else ():
            group = int(owners[some[0]])
            parts.append(self._read(group, column).take(pyarrow.array(index[some] - self._starts[group])))
        taken = pyarrow.chunked_array(parts or [self._read(0, column).slice(0, 0)]).combine_chunks()
        return taken.take(pyarrow.array(np.argsort(order)))

    def vectors(self, column: str) -> ParquetVectors:
        """Return a column of vectors of one width."""
        return ParquetVectors(self, column)

    def _read(self, group: int, column: str) -> Any:
        if self._last is None or self._last[0] != (group, column):
            number, part = self._groups[group]
            try:
                table = self.files[number].read_row_group(part, columns=[column])
            except (OSError, ValueError) as error:
                raise ValueError(f"{self.paths[number]}: row group {part} cannot be read: {error}.") from None
            self._last = (group, column), table[column].combine_chunks()
        return self._last[1]


@dataclass(frozen=True)
class ParquetVectors:
    """A column of lists of numbers, as rows of an array."""

    table: ParquetRows
    column: str

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def width(self) -> int:
        """Numbers in a row."""
        if not len(self):
            raise ValueError(f"{self.table.paths[0]}: there is no row.")
        return len(self.table.take(np.zeros(1, np.int64), self.column)[0])

    def take(self, index: np.ndarray) -> np.ndarray:
        """Return the rows ``index`` (n, width).

        Raises:
            ValueError: If one has another width, or is missing.
        """
        values = self.table.take(index, self.column)
        numbers = values.flatten().to_numpy(zero_copy_only=False)
        if values.null_count or len(numbers) != len(index) * self.width:
            raise ValueError(
                f"{self.table.paths[0]}: column '{self.column}' is not {self.width} numbers in every row of "
                f"{index.min()} to {index.max()}."
            )
        return np.array(numbers).reshape(len(index), self.width)  # a copy: what Arrow holds must not be written to
