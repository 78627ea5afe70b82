"""StoreFolder: a feature store on disk. Shards appear whole or not at all, and what is finished stays finished.

::

    manifest.json                    encoders, level, dtype, size of a shard, whether it is complete
    shards/00000.json                rows, bytes and SHA-256 of the files of shard 0, and what was skipped
    image/token_embeddings/00000.npy one array a column and shard, plain NumPy
    items/ids.utf8/00000.npy
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from freezealign.features.columns import NpyFile
from freezealign.features.shard import Shard
from freezealign.files import (
    check_version,
    claim,
    exclusive,
    file_digest,
    inside,
    read_object,
    write_atomically,
    write_json_atomically,
)
from freezealign.inputs import Skipped

FORMAT_VERSION = 2


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

    @property
    def complete(self) -> bool:
        """Whether every shard of a finished extraction is here."""
        manifest = self.manifest()
        return bool(manifest["complete"]) and self.finished() == list(range(manifest.get("shards", -1)))

    def manifest(self) -> dict[str, Any]:
        """Return the manifest.

        Raises:
            ValueError: If it is missing or damaged, or another version wrote it.
        """
        if not self.exists:
            raise ValueError(f"there is no feature store in {self.path}: it has no manifest.json.")
        keys = ("format_version", "complete", "level", "modalities")
        manifest = read_object(self._manifest, ("format_version",))
        if not isinstance(manifest["format_version"], int):
            raise ValueError(f"the store in {self.path} is damaged: its format_version is no number.")
        check_version(self.path, manifest, FORMAT_VERSION)
        if manifest["format_version"] < FORMAT_VERSION:
            raise ValueError(f"{self.path} was written by an earlier freezealign; extract the features again.")
        manifest = read_object(self._manifest, keys)
        if not manifest["modalities"]:
            raise ValueError(f"the store in {self.path} is damaged: its manifest names no modality.")
        return manifest

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
            write_json_atomically(self._manifest, {**self.manifest(), "complete": True, "shards": shards})

    def write(self, number: int, shard: Shard) -> None:
        """Write a shard: its arrays first, then the file that makes them count."""
        with explained(self.path):
            files = {name: self._write_array(number, name, rows) for name, rows in sorted(shard.columns.items())}
            skipped = [asdict(entry) for entry in shard.skipped]
            content = {"files": files, "skipped": skipped, "source": shard.source}
            write_json_atomically(self._shard_file(number), content)

    def _write_array(self, number: int, name: str, rows: np.ndarray) -> dict[str, Any]:
        path = self._array_file(number, name)
        write_atomically(path, array_writer(rows))
        return {"rows": len(rows), "bytes": path.stat().st_size, "sha256": file_digest(path)}

    # Reading

    def finished(self) -> list[int]:
        """Return the numbers of the shards that are there, in order."""
        return sorted(int(path.stem) for path in (self.path / "shards").glob("[0-9]*.json"))

    def files(self, number: int) -> dict[str, NpyFile]:
        """Return the arrays of a shard, opened but not read.

        Raises:
            ValueError: If a file is missing, or has not the size it was written with.
        """
        arrays = {}
        for name, entry in self._entry(number)["files"].items():
            path = self._array_file(number, name)
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                found = f"has {path.stat().st_size} bytes" if path.is_file() else "is missing"
                raise ValueError(f"{path} {found}, expected {entry['bytes']} bytes. {self._remedy(number)}")
            arrays[name] = NpyFile(path)
        return arrays

    def skipped(self, number: int) -> list[Skipped]:
        """Return what was left out of a shard."""
        return [Skipped(**entry) for entry in self._entry(number)["skipped"]]

    def source(self, number: int) -> str:
        """Return the digests of the pairs that a shard was made of; empty where it does not say."""
        return str(self._entry(number).get("source", ""))

    def checksums(self, number: int) -> str:
        """Return what tells a shard from any other."""
        return "".join(entry["sha256"] for entry in self._entry(number)["files"].values())

    def verify(self, number: int) -> None:
        """Read every file of a shard and compare its checksum.

        Raises:
            ValueError: If one differs; the message names it.
        """
        self.files(number)
        for name, entry in self._entry(number)["files"].items():
            digest = file_digest(self._array_file(number, name))
            if digest != entry["sha256"]:
                raise ValueError(
                    f"{self._array_file(number, name)} is damaged: its SHA-256 is {digest}, expected "
                    f"{entry['sha256']}. {self._remedy(number)}"
                )

    def _remedy(self, number: int) -> str:
        if "shard_size" not in self.manifest():
            return "It is a copy: save it again."
        return f"Delete {self._shard_file(number)} and run the extraction again: it redoes this shard only."

    def _entry(self, number: int) -> dict[str, Any]:
        return read_object(self._shard_file(number), ("files", "skipped"))

    def _shard_file(self, number: int) -> Path:
        return self.path / "shards" / f"{number:05d}.json"

    def _array_file(self, number: int, name: str) -> Path:
        return inside(self.path, f"{name}/{number:05d}.npy")


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
def well_formed(folder: Path) -> Iterator[None]:
    """Say which store it is whose JSON is of another form than what is written here.

    Raises:
        ValueError: With the folder and the remedy.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"the store in {folder} is damaged: its JSON or its columns are not what freezealign writes ({error!r}); "
            "extract the features again."
        ) from error


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
