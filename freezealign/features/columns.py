"""Columns: rows that lie in several arrays or files, addressed as one, and runs of rows of unequal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

LONG = 16
"""Neighbours from which on a run of them is better read than mapped."""


class NpyFile:
    """A ``.npy`` file that is open while it is read and at no other time, so that its pages do not pile up.

    Raises:
        ValueError: If it is not a readable ``.npy`` file of rows one after another.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        array = self.map()
        self.shape, self.dtype, self.offset = array.shape, array.dtype, array.offset
        if not array.ndim:
            raise ValueError(f"{path} holds one value and no rows.")
        if not array.flags.c_contiguous:
            raise ValueError(f"{path} is stored column by column; write it again with numpy.ascontiguousarray.")

    def __len__(self) -> int:
        return self.shape[0]

    def map(self) -> np.memmap:
        """Return the array, memory-mapped."""
        with self._readable():
            array: np.memmap = np.lib.format.open_memmap(self.path, mode="r")
        return array

    def read(self, runs: Sequence[np.ndarray], rows: np.ndarray) -> None:
        """Read rows that are given as runs of neighbours into ``rows``, each run in one go."""
        done = 0
        with self._readable(), self.path.open("rb") as file:
            for run in runs:
                part, done = rows[done : done + len(run)], done + len(run)
                file.seek(self.offset + int(run[0]) * part[0].nbytes)
                if file.readinto(part.data) != part.nbytes:
                    raise EOFError("it ends too early")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a damaged header makes NumPy raise whatever it happens to trip over
            raise ValueError(f"{self.path} cannot be read ({error}); extract the features again.") from error


class Column:
    """Rows of one shape and dtype in several parts, numbered through.

    Args:
        parts: Arrays in memory, or files.
    """

    def __init__(self, parts: Sequence[np.ndarray | NpyFile]) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def dtype(self) -> np.dtype:
        """The dtype of its rows."""
        return self.parts[0].dtype

    @property
    def place(self) -> str:
        """Where the rows are, for errors."""
        first = self.parts[0]
        return str(first.path.parent) if isinstance(first, NpyFile) else "memory"

    def runs(self, total: int) -> Runs:
        """Return the runs whose lengths the rows are.

        Raises:
            ValueError: If they are no lengths, or do not add up to ``total``.
        """
        lengths = self.all()
        if lengths.ndim > 1 or lengths.dtype.kind not in "iu" or lengths.min(initial=0) < 0 or lengths.sum() != total:
            raise ValueError(f"{self.place}: its lengths are not those of {total} rows; extract the features again.")
        return Runs(lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return len(self) * int(np.prod(self.parts[0].shape[1:])) * self.dtype.itemsize

    def take(self, index: np.ndarray) -> np.ndarray:
        """Return the rows ``index`` as an array in memory; in ascending order they are read the fastest."""
        index = index.astype(np.int64, copy=False)
        if len(self.parts) == 1 and isinstance(self.parts[0], np.ndarray):
            return np.take(self.parts[0], index, axis=0)
        if (np.diff(index) > 0).all():
            return self._take_ascending(index)
        owners = np.searchsorted(self.starts, index, side="right") - 1
        touched = np.unique(owners)
        if len(touched) == 1:
            return np.take(_mapped(self.parts[touched[0]]), index - self.starts[touched[0]], axis=0)
        rows = np.empty((len(index), *self.parts[0].shape[1:]), self.dtype)
        for part in touched:
            here = np.flatnonzero(owners == part)
            rows[here] = _mapped(self.parts[part])[index[here] - self.starts[part]]
        return rows

    def _take_ascending(self, index: np.ndarray) -> np.ndarray:
        rows = np.empty((len(index), *self.parts[0].shape[1:]), self.dtype)
        bounds = np.searchsorted(index, self.starts)
        if bounds[-1] - bounds[0] < len(index):
            raise IndexError(f"rows {index[0]} to {index[-1]} were asked for, and there are {len(self)}.")
        for number in np.flatnonzero(np.diff(bounds)):
            here, part = slice(bounds[number], bounds[number + 1]), self.parts[number]
            own = index[here] - self.starts[number]
            runs = np.split(own, np.flatnonzero(np.diff(own) != 1) + 1)
            if isinstance(part, NpyFile) and len(own) >= LONG * len(runs):
                part.read(runs, rows[here])
            else:
                rows[here] = _mapped(part)[own]
        return rows

    def all(self) -> np.ndarray:
        """Return every row as an array in memory."""
        return np.concatenate([_mapped(part) for part in self.parts])


def _mapped(part: np.ndarray | NpyFile) -> np.ndarray:
    return part.map() if isinstance(part, NpyFile) else part


class Runs:
    """Which run of neighbouring rows belongs to each of n owners: a text's tokens, an item's captions.

    Args:
        lengths: (n,) rows of each owner, one owner after another.
    """

    def __init__(self, lengths: np.ndarray) -> None:
        self.n = len(lengths)
        self.uniform = int(lengths[0]) if self.n and (lengths == lengths[0]).all() else None
        self._bounds = None if self.uniform is not None else np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __len__(self) -> int:
        return self.n

    def starts(self, owners: np.ndarray) -> np.ndarray:
        """Return the first row of each owner."""
        if self._bounds is None:
            return owners.astype(np.int64) * (self.uniform or 0)
        return self._bounds[owners]

    def lengths(self, owners: np.ndarray) -> np.ndarray:
        """Return how many rows each owner has."""
        if self._bounds is None:
            return np.full(len(owners), self.uniform)
        return self._bounds[1:][owners] - self._bounds[owners]

    def rows(self, owners: np.ndarray) -> np.ndarray:
        """Return all rows of these owners, one owner after another."""
        return neighbours(self.starts(owners), self.lengths(owners))


def neighbours(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the numbers of every run, one run after another: ``lengths[i]`` of them from ``starts[i]`` on."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(lengths.sum())


class Strings:
    """Texts as one column of UTF-8 bytes.

    Args:
        utf8: The bytes of all texts, one text after another.
        lengths: Bytes of each text.
    """

    def __init__(self, utf8: Column, lengths: Column) -> None:
        self.utf8, self.lengths = utf8, lengths

    @cached_property
    def runs(self) -> Runs:
        """Which bytes belong to each text."""
        return self.lengths.runs(len(self.utf8))

    def take(self, index: np.ndarray) -> list[str]:
        """Return some of the texts."""
        ends = np.cumsum(self.runs.lengths(index))
        utf8 = self.utf8.take(self.runs.rows(index)).tobytes() if ends.size and ends[-1] else b""
        try:
            return [utf8[start:end].decode("utf-8", "surrogatepass") for start, end in zip([0, *ends], ends)]
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.utf8.place}: not UTF-8 ({error}); extract the features again.") from None


def as_bytes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of texts, one after another, and the number of bytes of each: what :class:`Strings` reads."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]  # a file name may hold lone surrogates
    lengths = np.array([len(text) for text in encoded], np.int32)
    return np.frombuffer(b"".join(encoded), np.uint8), lengths
