"""Pairs from a CSV, TSV or JSON-lines file, row by row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from freezealign.data.sources.rows import Row, row_to_pair
from freezealign.data.sources.source import Columns, PairSource

csv.field_size_limit(2**24)  # the default, 131,072, takes a longer caption's neighbours with it


class TextTable(PairSource):
    """The rows of a file; one that cannot be read keeps its place and says why.

    Args:
        path: A ``.csv``, ``.tsv`` or ``.jsonl`` file in UTF-8, or one of these with ``.gz``.
        columns: The names of the columns.

    Raises:
        ValueError: If a column is missing, or no row can be read.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.columns = path, columns
        columns.check(column_names(path), str(path))

    def _read(self, position: int) -> Iterator[dict[str, Any]]:
        for number, row in islice(enumerate(read_rows(self.path)), position, None):
            yield row_to_pair(row, number, self.columns, self.path.parent)


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file, blank lines left out; one that cannot be read as the reason why."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as content:
        lines = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            yield from READERS[table_suffix(path)](lines)
        except (OSError, EOFError, zlib.error, csv.Error) as error:
            yield f"the rest of {path} cannot be read: {error}."


def column_names(path: Path) -> list[str]:
    """Return the columns of the first row that can be read.

    Raises:
        ValueError: If there is none.
    """
    reason = "it is empty."
    for row in read_rows(path):
        if not isinstance(row, str):
            return list(row)
        reason = row
    raise ValueError(f"{path}: there is no row that can be read; {reason}")


def table_suffix(path: Path) -> str:
    """Return the suffix that tells the format: that before ``.gz``, in lower case."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _read_csv(lines: Iterable[str], delimiter: str) -> Iterator[Row]:
    """Yield the rows below the header; ``strict``, because otherwise an open quote swallows rows silently."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = next(reader, [])
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {reader.line_num}: {error}; is a quotation mark missing or not doubled?"
            continue
        if cells and len(cells) != len(header):
            yield (
                f"line {reader.line_num} has {len(cells)} cells, the header {len(header)}; "
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


READERS: dict[str, Callable[[Iterable[str]], Iterator[Row]]] = {
    ".csv": partial(_read_csv, delimiter=","),
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".jsonl": _read_json_lines,
}
