"""Rows of Parquet files, read by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from freezealign.data.sources.parquet import open_parquet

FIRST_ROWS = 1000
"""Rows that tell the width of a column of vectors."""


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
        self.schemas: list[Any] = []
        self._groups: list[tuple[int, int]] = []
        sizes: list[int] = []
        for number, path in enumerate(self.paths):
            with open_parquet(path) as file:
                metadata = file.metadata
                own = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                self.schemas.append(file.schema_arrow)
            self.sizes.append(sum(own))
            self._groups += [(number, group) for group in range(len(own))]
            sizes += own
        self._starts = np.cumsum([0, *sizes])
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
        """Return what a column holds, in each file: ``text``, ``whole`` or ``real`` numbers, nothing, or its type."""
        from pyarrow import types

        found = set()
        for schema in self.schemas:
            kind = schema.field(column).type
            kind = kind.value_type if types.is_dictionary(kind) else kind
            if types.is_null(kind):
                found.add("")
            elif types.is_integer(kind):
                found.add("whole")
            elif types.is_floating(kind):
                found.add("real")
            else:
                found.add("text" if str(kind) in ("string", "large_string") else str(kind))
        return found

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
            number, part = self._groups[group]
            try:
                with open_parquet(self.paths[number]) as file:
                    table = file.read_row_group(part, columns=[column])
                if len(table) != self._starts[group + 1] - self._starts[group]:
                    raise ValueError(f"it has {len(table):,} rows")
            except (OSError, ValueError, ArrowException) as error:
                raise ValueError(f"{self.paths[number]}: row group {part} cannot be read: {error}.") from None
            self._last = (group, column), table[column].combine_chunks()
        return self._last[1]


class ParquetVectors:
    """A column of lists of numbers, as rows of an array; most of the first row group have its width.

    Args:
        table: The files.
        column: Its name.

    Raises:
        ValueError: If it does not hold lists of floats in every file, or there are none in the first row group.
    """

    def __init__(self, table: ParquetRows, column: str) -> None:
        from pyarrow import compute, types

        for path, schema in zip(table.paths, table.schemas):
            kind = schema.field(column).type
            is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
            if not is_list or not types.is_floating(kind.value_type):
                raise ValueError(f"{path}: column '{column}' holds no vectors: it is {kind}, not lists of floats.")
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
