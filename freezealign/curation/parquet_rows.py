"""Rows of Parquet files, read by number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freezealign.data.sources.tables import open_parquet


class ParquetRows:
    """The rows of several files, numbered through; a row group is read at a time, and the last one is kept.

    A file is open while it is read and at no other time.

    Args:
        paths: The files, in order.

    Raises:
        ModuleNotFoundError: If pyarrow is not installed.
        ValueError: If a file is not readable.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.sizes: list[int] = []
        self.columns: list[str] = []
        self._groups: list[tuple[int, int]] = []
        sizes = []
        for number, path in enumerate(self.paths):
            with open_parquet(path) as file:
                names, metadata = file.schema_arrow.names, file.metadata
                self.columns = [name for name in self.columns if name in names] if number else list(names)
                self.sizes.append(metadata.num_rows)
                self._groups += [(number, group) for group in range(metadata.num_row_groups)]
                sizes += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._last: tuple[tuple[int, str], Any] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def values(self, index: np.ndarray, column: str) -> list[Any]:
        """Return one column of some rows."""
        found: list[Any] = [None] * len(index)
        for places, _, some in self.parts(index, column):
            for place, value in zip(places, some.to_pylist()):
                found[place] = value
        return found

    def parts(self, index: np.ndarray, column: str) -> Iterator[tuple[np.ndarray, Path, Any]]:
        """Yield one column of some rows by row group: where they stand in ``index``, the file, and a pyarrow array."""
        import pyarrow

        owners = np.searchsorted(self._starts, index, side="right") - 1
        order = np.argsort(owners, kind="stable")
        bounds = np.flatnonzero(np.diff(owners[order])) + 1
        for places in np.split(order, bounds) if len(order) else ():
            group = int(owners[places[0]])
            rows = pyarrow.array(index[places] - self._starts[group])
            yield places, self.paths[self._groups[group][0]], self._read(group, column).take(rows)

    def _read(self, group: int, column: str) -> Any:
        if self._last is None or self._last[0] != (group, column):
            number, part = self._groups[group]
            try:
                with open_parquet(self.paths[number]) as file:
                    table = file.read_row_group(part, columns=[column])
            except (OSError, ValueError) as error:
                raise ValueError(f"{self.paths[number]}: row group {part} cannot be read: {error}.") from None
            self._last = (group, column), table[column].combine_chunks()
        return self._last[1]


@dataclass(frozen=True)
class ParquetVectors:
    """A column of lists of numbers, as rows of an array.

    Args:
        table: The files.
        column: Its name.
        width: Numbers in each row.
    """

    table: ParquetRows
    column: str
    width: int

    @classmethod
    def of(cls, table: ParquetRows, column: str) -> ParquetVectors:
        """Return a column whose first row tells the width.

        Raises:
            ValueError: If there is no row, or the first is no list of numbers.
        """
        first = table.values(np.zeros(min(1, len(table)), np.int64), column)
        if not first or not isinstance(first[0], list) or not all(isinstance(number, float) for number in first[0]):
            raise ValueError(f"{table.paths[0]}: column '{column}' holds no vectors: its first row is not floats.")
        return cls(table, column, len(first[0]))

    def __len__(self) -> int:
        return len(self.table)

    def take(self, index: np.ndarray) -> np.ndarray:
        """Return the rows ``index`` (n, width) as float32.

        Raises:
            ValueError: If one has another width, or is missing.
        """
        from pyarrow import compute

        rows = np.empty((len(index), self.width), np.float32)
        for places, path, some in self.table.parts(index, self.column):
            lengths = compute.list_value_length(some)
            numbers = some.flatten()
            if some.null_count or numbers.null_count or compute.any(compute.not_equal(lengths, self.width)).as_py():
                raise ValueError(
                    f"{path}: column '{self.column}' is not {self.width} numbers in each of the rows "
                    f"{index[places].min()} to {index[places].max()} of the pool."
                )
            rows[places] = numbers.to_numpy(zero_copy_only=False).reshape(len(places), self.width)
        return rows
