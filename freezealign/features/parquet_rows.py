"""Rows of Parquet files, read by number."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from freezealign.data.sources.tables import open_parquet

FIRST_ROWS = 1000
"""Rows that tell the width of a column of vectors."""
LISTS = re.compile(r"(large_|fixed_size_)?list<.*: (halffloat|float|double)( not null)?>(\[\d+\])?")


class ParquetRows:
    """The rows of several files, numbered through; a row group is read at a time, and the last one is kept.

    A file is open while it is read and at no other time.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.sizes: list[int] = []
        self.schemas: list[Any] = []
        self._groups: list[tuple[Path, int, int]] = []
        for path in self.paths:
            with open_parquet(path) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                self.schemas.append(file.schema_arrow)
            self.sizes.append(sum(sizes))
            self._groups += [(path, group, size) for group, size in enumerate(sizes)]
        self._starts = np.cumsum([0, *(size for _, _, size in self._groups)])
        self._last: tuple[tuple[int, str], Any] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    @property
    def columns(self) -> list[str]:
        """The columns that all files have."""
        names: list[str] = self.schemas[0].names
        return [name for name in names if all(schema.names.count(name) == 1 for schema in self.schemas)]

    def kinds(self, column: str) -> set[str]:
        """Return the types of a column in the files, as Arrow names them; of a dictionary, that of its values."""
        names = {str(schema.field(column).type) for schema in self.schemas}
        return {re.sub(r"dictionary<values=(\w+),.*", r"\1", name) for name in names}

    def values(self, index: np.ndarray, column: str) -> list[Any]:
        """Return one column of some rows."""
        found: list[Any] = [None] * len(index)
        for places, some in self.parts(index, column):
            for place, value in zip(places, some.to_pylist()):
                found[place] = value
        return found

    def parts(self, index: np.ndarray, column: str) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield one column of some rows by row group: where they stand in ``index``, and a pyarrow array."""
        import pyarrow

        owners = np.searchsorted(self._starts, index, side="right") - 1
        order = np.argsort(owners, kind="stable")
        bounds = np.flatnonzero(np.diff(owners[order])) + 1
        for places in np.split(order, bounds) if len(order) else ():
            group = int(owners[places[0]])
            yield places, self._read(group, column).take(pyarrow.array(index[places] - self._starts[group]))

    def _read(self, group: int, column: str) -> Any:
        from pyarrow import ArrowException

        if self._last is None or self._last[0] != (group, column):
            path, number, size = self._groups[group]
            try:
                with open_parquet(path) as file:
                    table = file.read_row_group(number, columns=[column])
                if len(table) != size:
                    raise ValueError(f"it has {len(table):,} rows")
            except (OSError, ValueError, ArrowException) as error:
                raise ValueError(f"{path}: row group {number} cannot be read: {error}.") from None
            self._last = (group, column), table[column].combine_chunks()
        return self._last[1]


class ParquetVectors:
    """A column of lists of numbers, as rows of an array that are as wide as most of the first ones.

    Raises:
        ValueError: If it does not hold lists of floats in every file, or there are none in the first rows.
    """

    def __init__(self, table: ParquetRows, column: str) -> None:
        from pyarrow import compute

        if odd := [kind for kind in table.kinds(column) if not LISTS.fullmatch(kind)]:
            raise ValueError(
                f"{table.paths[0]}: column '{column}' holds no vectors: it is {odd[0]}, no lists of floats."
            )
        self.table, self.column = table, column
        first = next(table.parts(np.arange(min(FIRST_ROWS, len(table))), column), None)
        lengths = Counter(filter(None, compute.list_value_length(first[1]).to_pylist()) if first else ())
        if not lengths:
            raise ValueError(f"{table.paths[0]}: column '{column}' holds no vectors in its first rows.")
        self.width: int = lengths.most_common(1)[0][0]

    def __len__(self) -> int:
        return len(self.table)

    def take(self, index: np.ndarray) -> np.ndarray:
        """Return the rows ``index`` (n, width) as float32; NaN where one is missing or of another width."""
        from pyarrow import compute

        rows = np.full((len(index), self.width), np.nan, np.float32)
        for places, some in self.table.parts(index, self.column):
            whole = compute.equal(compute.list_value_length(some), self.width).fill_null(False)
            numbers = some.filter(whole).flatten().to_numpy(zero_copy_only=False)
            with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and is told as unusable
                rows[places[whole.to_numpy(zero_copy_only=False)]] = numbers.reshape(-1, self.width)
        return rows
