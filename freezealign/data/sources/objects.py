"""Pairs that are already an object: its columns get the names that the library reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from freezealign.data.sources.source import Columns


def rename_columns(data: Any, columns: Columns) -> Any:
    """Return ``data`` itself, or where a column was chosen a view of it with that column renamed.

    Args:
        data: A ``datasets`` data set, a ``DataLoader``, a list or another iterable.
        columns: The names of the columns.

    Raises:
        TypeError: If ``data`` holds no pairs.
        ValueError: If a ``datasets`` data set lacks a column.
    """
    if isinstance(data, Mapping):
        raise TypeError(f"a {type(data).__name__} is no sequence of pairs; pass one of its values: {list(data)}.")
    if not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise TypeError(f"pairs come from a path or an iterable, not from {type(data).__name__}.")
    names = {column: keyword for keyword, column in columns.renamed().items()}
    if not names:
        return data
    if type(data).__module__.startswith("datasets."):
        return _rename_dataset(data, columns, names)
    has_positions = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return _RenamedSequence(data, names) if has_positions else _Renamed(data, names)


def _rename_dataset(data: Any, columns: Columns, names: Mapping[str, str]) -> Any:
    found = data.column_names
    if found is not None:  # a stream may not know
        columns.check(found, "the data set")
        data = data.remove_columns([name for name in names.values() if name in found and name not in names])
    return data.rename_columns(names)


class _Renamed:
    def __init__(self, data: Any, names: Mapping[str, str]) -> None:
        self.data, self.names = data, names

    def __iter__(self) -> Iterator[Any]:
        return map(self._rename, self.data)

    def _rename(self, element: Any) -> Any:
        if not isinstance(element, Mapping):
            return element
        replaced = set(self.names.values()) - set(self.names)
        return {self.names.get(name, name): value for name, value in element.items() if name not in replaced}


class _RenamedSequence(_Renamed):
    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self._rename(self.data[index])
