"""StoreFolder: a feature store on disk. Shards appear whole or not at all, and what is finished stays finished.

::

    manifest.json                    encoders, level, dtype, size of a shard, whether it is complete
    shards/00000.json                rows, bytes and SHA-256 of the files of shard 0, and what was skipped
    image/token_embeddings/00000.npy one array a column and shard, plain NumPy
    items/ids.utf8/00000.npy
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np
from typing_extensions import NotRequired

from freezealign.features.columns import NpyFile
from freezealign.features.frozen import Origin
from freezealign.features.shard import Level, Shard
from freezealign.files import (
    claim,
    exclusive,
    file_digest,
    inside,
    read_object,
    write_atomically,
    write_json_atomically,
)
from freezealign.forms import check_version, formed
from freezealign.inputs import Skipped

FORMAT_VERSION = 2


class Manifest(TypedDict):
    """What ``manifest.json`` holds; a store that was extracted here also holds the request."""

    format_version: int
    complete: bool
    level: Level
    modalities: dict[str, Origin]
    shards: NotRequired[int]
    data: NotRequired[str | None]


class ArrayEntry(TypedDict):
    """What the file of a shard says of one of its arrays."""

    rows: int
    bytes: int
    sha256: str


class ShardEntry(TypedDict):
    """What the file of a shard holds: its arrays by name, what was left out, and the digests of its pairs."""

    files: dict[str, ArrayEntry]
    skipped: list[Skipped]
    source: NotRequired[str]


class StoreFolder:
    """A folder that a feature store is written to or read from.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def _manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def exists(self) -> bool:
        """Whether a store has been begun here."""
        return self._manifest.is_file()

    def manifest(self) -> Manifest:
        """Return the manifest.

        Raises:
            ValueError: If it is missing or damaged, or another version wrote it.
        """
        if not self.exists:
            raise ValueError(f"there is no feature store in {self.path}: it has no manifest.json.")
        path = inside(self.path, "manifest.json")
        manifest = read_object(path, {"format_version": int})
        check_version(self.path, manifest, FORMAT_VERSION)
        if manifest["format_version"] < FORMAT_VERSION:
            raise ValueError(f"{self.path} was written by an earlier freezealign; extract the features again.")
        if not manifest.get("modalities"):
            raise ValueError(f"the store in {self.path} is damaged: its manifest names no modality.")
        made: Manifest = formed(path, manifest, Manifest)
        return made

    @property
    def complete(self) -> bool:
        """Whether a store is here, and every shard of a finished extraction."""
        return self.exists and self.is_complete(self.manifest(), self.finished())

    @staticmethod
    def is_complete(manifest: Manifest, numbers: Sequence[int]) -> bool:
        """Whether the shards of these numbers are all that a manifest counts."""
        return manifest["complete"] and numbers == list(range(len(numbers))) and manifest.get("shards") == len(numbers)

    # Writing

    @contextmanager
    def writing(self, request: dict[str, Any], fingerprint: str | None = None) -> Iterator[None]:
        """Start a store, or go on with the one that was begun here with the same ``request``, while the block runs.

        The manifest of a new one notes the ``fingerprint`` of the data, by which it is known without being read.

        Raises:
            FileExistsError: If something else is here.
            OSError: If the folder cannot be written.
            RuntimeError: If another process is writing here.
            ValueError: If the store was begun with another request; the message names what differs.
        """
        with ExitStack() as stack:
            with explained(self.path):
                stack.enter_context(exclusive(self.path))
            if self.exists:
                self.manifest()
            with explained(self.path):
                more = {"format_version": FORMAT_VERSION, "complete": False, "data": fingerprint}
                claim(self._manifest, request, "feature store", **more)
            yield

    def finish(self, shards: int) -> None:
        """Declare the store complete."""
        with explained(self.path):
            write_json_atomically(self._manifest, read_object(self._manifest) | {"complete": True, "shards": shards})

    def write(self, number: int, shard: Shard) -> None:
        """Write a shard: its arrays first, then the file that makes them count."""
        files = {}
        with explained(self.path):
            for name, rows in sorted(shard.columns.items()):
                path = self._array_file(number, name)
                write_atomically(path, array_writer(rows))
                files[name] = {"rows": len(rows), "bytes": path.stat().st_size, "sha256": file_digest(path)}
            skipped = [asdict(entry) for entry in shard.skipped]
            content = {"files": files, "skipped": skipped, "source": shard.source}
            write_json_atomically(self._shard_file(number), content)

    # Reading

    def finished(self) -> list[int]:
        """Return the numbers of the shards that are there, in order."""
        names = (path.stem for path in (self.path / "shards").glob("*.json"))
        return sorted(int(name) for name in names if re.fullmatch("[0-9]{5,9}", name))

    def entry(self, number: int) -> ShardEntry:
        """Return what the file of a shard says of it.

        Raises:
            ValueError: If it is missing or damaged.
        """
        path = self._shard_file(number)
        with self._remedied(number):
            entry: ShardEntry = read_object(inside(self.path, f"shards/{path.name}"), ShardEntry)
        return entry

    def files(self, number: int, entry: ShardEntry) -> dict[str, NpyFile]:
        """Return the arrays of a shard, opened but not read.

        Raises:
            ValueError: If a file is missing or not named, or has not the size it was written with.
        """
        arrays = {}
        with self._remedied(number):
            for name, told in entry["files"].items():
                path = self._array_file(number, name)
                if not path.is_file():
                    raise ValueError(f"{path} is missing, or is no file.")
                if (found := path.stat().st_size) != told["bytes"]:
                    raise ValueError(f"{path} has {found} bytes, expected {told['bytes']} bytes.")
                arrays[name] = array = NpyFile(path)
                if len(array) != told["rows"]:
                    raise ValueError(f"{path} has {len(array)} rows, expected {told['rows']}.")
            there = {str(file.parent.relative_to(self.path)) for file in self.path.glob(f"*/*/{number:05d}.npy")}
            if unknown := sorted(there - set(arrays)):
                raise ValueError(f"{self._shard_file(number)} does not name {unknown}, which are there.")
        return arrays

    def verify(self, number: int, entry: ShardEntry) -> None:
        """Read every file of a shard and compare its checksum.

        Raises:
            ValueError: If one differs; the message names it.
        """
        with self._remedied(number):
            for name, told in entry["files"].items():
                path, expected = self._array_file(number, name), told["sha256"]
                if (digest := file_digest(path)) != expected:
                    raise ValueError(f"{path} is damaged: its SHA-256 is {digest}, expected {expected}.")

    @contextmanager
    def _remedied(self, number: int) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            remedy = "It is a copy: save it again."
            if "shard_size" in self.manifest():
                remedy = f"Delete {self._shard_file(number)} and run the extraction again: it redoes this shard only."
            raise ValueError(f"the store in {self.path} is damaged: {error} {remedy}") from error

    def _shard_file(self, number: int) -> Path:
        return self.path / "shards" / f"{number:05d}.json"

    def _array_file(self, number: int, name: str) -> Path:
        inside(self.path, f"{name}/{number:05d}.npy")
        return self.path / name / f"{number:05d}.npy"


def array_writer(rows: np.ndarray) -> Callable[[BinaryIO], Any]:
    """Return a function that writes an array as ``.npy``.

    ``np.save`` writes through a C stream and ignores the error of closing it: where a disk is full, the last bytes of
    an array can be missing and nobody is told.
    """
    rows = np.ascontiguousarray(rows)

    def write(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(rows))
        file.write(rows.data)

    return write


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say what a failing disk means for the store.

    Raises:
        OSError: With the folder, the cause and the remedy.
    """
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space" if full else "choose a folder that can be written"
        raise OSError(
            error.errno,
            f"cannot write to {folder}: {error.strerror or error}. Finished shards are kept and stay usable; {remedy} "
            "and run it again.",
        ) from error
