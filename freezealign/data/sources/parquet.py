"""Pairs from Parquet files, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from freezealign.data.sources.rows import Row, row_to_pair
from freezealign.data.sources.source import Columns, PairSource

BATCH_ROWS = 256


class ParquetTable(PairSource):
    """The rows of one or several files; only the columns that are needed are read.

    Args:
        paths: The files, in the order in which they are read.
        columns: The names of the columns.

    Raises:
        ModuleNotFoundError: If pyarrow is not installed.
        ValueError: If a file is not Parquet, or lacks a column.
    """

    def __init__(self, paths: Sequence[Path], columns: Columns) -> None:
        self.paths, self.columns = paths, columns
        self._row_groups = [_row_groups(path, columns) for path in paths]

    def __len__(self) -> int:
        return sum(map(sum, self._row_groups))

    def _read(self, position: int) -> Iterator[dict[str, Any]]:
        first = 0
        for path, sizes in zip(self.paths, self._row_groups):
            if first + sum(sizes) > position:
                yield from self._read_file(path, sizes, first, position)
            first += sum(sizes)

    def _read_file(self, path: Path, sizes: Sequence[int], first: int, position: int) -> Iterator[dict[str, Any]]:
        with open_parquet(path) as file:
            for group, size in enumerate(sizes):
                skip = min(max(position - first, 0), size)
                for number, row in enumerate(self._rows(file, path, group, skip, size), first + skip):
                    yield row_to_pair(row, number, self.columns, path.parent)
                first += size

    def _rows(self, file: Any, path: Path, group: int, skip: int, size: int) -> Iterator[Row]:
        """Yield the rows of a row group from ``skip`` on; where its data is damaged, each says so."""
        if skip == size:
            return
        start, names = 0, [self.columns.image, self.columns.text, self.columns.id]
        try:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names):
                rows = batch.slice(max(skip - start, 0)).to_pylist()
                start += len(batch)
                yield from rows
        except (OSError, ValueError) as error:
            for _ in range(max(start, skip), size):
                yield f"{path}: row group {group} cannot be read: {error}."


def _row_groups(path: Path, columns: Columns) -> list[int]:
    """Return the number of rows of each row group, after a check of the columns."""
    with open_parquet(path) as file:
        columns.check(file.schema_arrow.names, str(path))
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def open_parquet(path: Path) -> Any:
    """Open a Parquet file; only its footer is read.

    Raises:
        ModuleNotFoundError: If pyarrow is not installed.
        ValueError: If it is not a readable Parquet file.
    """
    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"reading {path} needs pyarrow: pip install 'freezealign[web]'") from None
    try:
        return ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error}).") from None
