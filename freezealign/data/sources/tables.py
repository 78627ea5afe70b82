"""Pairs from tables: CSV, TSV and JSON lines row by row, Parquet files a few rows at a time."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from freezealign.data.sources.source import Columns, PairSource, Row, row_to_pair

csv.field_size_limit(2**24)  # the default, 131,072, takes a longer caption's neighbours with it
BATCH_ROWS = 256


class TextTable(PairSource):
    """The rows of a CSV, TSV or JSON-lines file, plain or ``.gz``; one that cannot be read keeps its place."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.columns = path, columns
        columns.check(column_names(path), str(path))

    def _read(self, position: int) -> Iterator[dict[str, Any]]:
        for number, row in islice(enumerate(read_rows(self.path)), position, None):
            yield row_to_pair(row, number, self.columns, self.path.parent)


class ParquetTable(PairSource):
    """The rows of one or several files, in order; only the columns that are needed are read."""

    def __init__(self, paths: Sequence[Path], columns: Columns) -> None:
        self.paths, self.columns, self._row_groups = paths, columns, []
        for path in paths:
            with open_parquet(path) as file:
                columns.check(file.schema_arrow.names, str(path))
                groups = range(file.num_row_groups)
                self._row_groups.append([file.metadata.row_group(group).num_rows for group in groups])

    def __len__(self) -> int:
        return sum(map(sum, self._row_groups))

    def _read(self, position: int) -> Iterator[dict[str, Any]]:
        names, first = [self.columns.image, self.columns.text, self.columns.id], 0
        for path, sizes in zip(self.paths, self._row_groups):
            if first + sum(sizes) <= position:
                first += sum(sizes)
                continue
            with open_parquet(path) as file:
                for group, size in enumerate(sizes):
                    skip = min(max(position - first, 0), size)
                    for number, row in enumerate(_group_rows(file, path, group, skip, names), first + skip):
                        yield row_to_pair(row, number, self.columns, path.parent)
                    first += size


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file, blank lines left out; one that cannot be read as the reason why."""
    if path.suffix.lower() == ".parquet":
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):
                yield from _group_rows(file, path, group, 0, None)
        return
    with _open_lines(path) as lines:
        try:
            yield from READERS[table_suffix(path)](lines)
        except (OSError, EOFError, zlib.error, csv.Error) as error:
            yield f"the rest of {path} cannot be read: {error}."


def column_names(path: Path) -> list[str]:
    """Return the names of the columns, in JSON lines those of the first row that can be read.

    Raises:
        ValueError: If no row can be read.
    """
    if path.suffix.lower() == ".parquet":
        with open_parquet(path) as file:
            return list(file.schema_arrow.names)
    reason = "it is empty."
    for row in read_rows(path):
        if not isinstance(row, str):
            break
        reason = row
    else:
        raise ValueError(f"{path}: there is no row that can be read; {reason}")
    if table_suffix(path) == ".jsonl":
        return list(row)
    with _open_lines(path) as lines:
        names = next(csv.reader(lines, delimiter=DELIMITERS[table_suffix(path)]))
    if any("\0" in name for name in names):
        raise ValueError(f"{path} is not in UTF-8, by its zero bytes in UTF-16; save it as UTF-8.")
    return names


def table_suffix(path: Path) -> str:
    """Return the suffix that tells the format: that before ``.gz``, in lower case."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


@contextmanager
def _open_lines(path: Path) -> Iterator[io.TextIOWrapper]:
    from freezealign.files import open_file

    with open_file(path) as file, gzip.open(file) if path.suffix.lower() == ".gz" else file as content:
        yield io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _read_csv(lines: Iterator[str], delimiter: str) -> Iterator[Row]:
    """Yield the rows below the header; ``strict``, because otherwise an open quote swallows rows silently.

    Of a row that cannot be read only the first line is lost: what an open quote swallowed is read again.
    """
    again: deque[str] = deque()
    taken: list[str] = []

    def feed() -> Iterator[str]:
        while (line := again.popleft() if again else next(lines, None)) is not None:
            taken.append(line)
            yield line

    reader, before = csv.reader(feed(), delimiter=delimiter, strict=True), 0
    header = next(reader, [])
    while True:
        before += len(taken)
        taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {before + 1}: {error}; is a quotation mark missing or not doubled?"
            again.extendleft(reversed(taken[1:]))
            del taken[1:]
            reader = csv.reader(feed(), delimiter=delimiter, strict=True)
            continue
        if cells and len(cells) != len(header):
            yield (
                f"line {before + 1} has {len(cells)} cells, the header {len(header)}; "
                "put quotation marks around a cell that holds the separator."
            )
        elif cells:
            yield dict(zip(header, cells))


def _read_json_lines(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield f"line {number} is not JSON: {error}."
            continue
        yield row if isinstance(row, dict) else f"line {number} is not a JSON object."


DELIMITERS = {".csv": ",", ".tsv": "\t"}
READERS: dict[str, Callable[[Iterator[str]], Iterator[Row]]] = {
    **{suffix: partial(_read_csv, delimiter=delimiter) for suffix, delimiter in DELIMITERS.items()},
    ".jsonl": _read_json_lines,
}


def open_parquet(path: Path) -> Any:
    """Open a Parquet file; only its footer is read.

    Raises:
        ModuleNotFoundError: If pyarrow is not installed.
        ValueError: If it is not a readable Parquet file.
    """
    from freezealign.files import check_file

    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"reading {path} needs pyarrow: pip install 'freezealign[web]'") from None
    try:
        check_file(path)
        return ParquetFile(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error}).") from None


def _group_rows(file: Any, path: Path, group: int, skip: int, names: list[str] | None) -> Iterator[Row]:
    """Yield the rows of a row group from ``skip`` on; where its data is damaged, each says so."""
    start, size = 0, file.metadata.row_group(group).num_rows
    if skip == size:
        return
    try:
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names):
            columns = [_values(column) for column in batch.slice(max(skip - start, 0)).columns]
            start += len(batch)
            yield from (dict(zip(batch.schema.names, cells)) for cells in zip(*columns))
    except Exception as error:  # damaged data makes pyarrow raise whatever it happens to trip over
        for _ in range(max(start, skip), size):
            yield f"{path}: row group {group} cannot be read: {error}."


def _values(column: Any) -> list[Any]:
    """Return the cells of a column; bytes of a text that are no UTF-8 become lone surrogates, as in other tables."""
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if hasattr(scalar, "items"):
            return {name: _value(item) for name, item in scalar.items()}
        if hasattr(scalar, "values"):
            return [_value(item) for item in scalar.values]
        return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
