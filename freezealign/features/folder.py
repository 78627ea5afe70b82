"""StoreFolder: a feature store on disk. Shards appear whole or not at all, and what is finished stays finished.

::

    manifest.json                    encoders, level, dtype, size of a shard, whether it is complete
    shards/00000.json                rows, bytes and SHA-256 of the files of shard 0, and what was skipped
    image/token_embeddings/00000.npy one array a column and shard, plain NumPy
    items/ids.utf8/00000.npy
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from freezealign.features.columns import NpyFile
from freezealign.features.shard import Shard
from freezealign.files import check_version, file_digest, inside, read_object, write_atomically, write_json_atomically
from freezealign.inputs import Skipped

FORMAT_VERSION = 2
LEFTOVERS = (".lock", ".manifest.json.tmp")
"""What is in the folder before there is a manifest."""


class StoreFolder:
    """A folder that a feature store is written to or read from.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether a store has been begun here."""
        return (self.path / "manifest.json").is_file()

    @property
    def foreign(self) -> bool:
        """Whether something else is here: neither a store, nor what a run killed before it began one left behind."""
        if not self.path.is_dir():
            return self.path.exists()
        return not self.exists and any(entry.name not in LEFTOVERS for entry in self.path.iterdir())

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
        keys = ("format_version", "complete", "level", "modalities")
        manifest = read_object(self.path / "manifest.json", ("format_version",))
        if not isinstance(manifest["format_version"], int):
            raise ValueError(f"the store in {self.path} is damaged: its format_version is no number.")
        check_version(self.path, manifest, FORMAT_VERSION)
        if manifest["format_version"] < FORMAT_VERSION:
            raise ValueError(f"{self.path} was written by an earlier freezealign; extract the features again.")
        manifest = read_object(self.path / "manifest.json", keys)
        if not manifest["modalities"]:
            raise ValueError(f"the store in {self.path} is damaged: its manifest names no modality.")
        return manifest

    # Writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep every other writer out while the block runs.

        Raises:
            RuntimeError: If another process is writing here.
            OSError: If the folder cannot be written.
        """
        from filelock import FileLock, Timeout

        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise RuntimeError(f"another process is writing to {self.path}; wait for it, or stop it.") from None
        try:
            yield
        finally:
            # before the release: a file unlinked after it may already be the lock of the next writer
            (self.path / ".lock").unlink(missing_ok=True)
            lock.release()

    def begin(self, request: dict[str, Any]) -> None:
        """Start a store, or go on with the one that was begun here with the same ``request``.

        Raises:
            ValueError: If it was begun with another; the message names the first difference.
        """
        if not self.exists:
            self._write_manifest({**request, "complete": False})
            return
        begun = self.manifest()
        for key, value in json.loads(json.dumps(request)).items():
            if begun.get(key) != value:
                raise ValueError(
                    f"the unfinished store in {self.path} was begun with {key} = {begun.get(key)}, this run has "
                    f"{value}; run it as it was begun, or choose another folder."
                )

    def finish(self, shards: int) -> None:
        """Declare the store complete."""
        self._write_manifest({**self.manifest(), "complete": True, "shards": shards})

    def write(self, number: int, shard: Shard) -> None:
        """Write a shard: its arrays first, then the file that makes them count."""
        with explained(self.path):
            files = {name: self._write_array(number, name, rows) for name, rows in sorted(shard.columns.items())}
            content = {"files": files, "skipped": [asdict(entry) for entry in shard.skipped]}
            write_json_atomically(self._shard_file(number), content)

    def _write_array(self, number: int, name: str, rows: np.ndarray) -> dict[str, Any]:
        path = self._array_file(number, name)
        write_atomically(path, array_writer(rows))
        return {"rows": len(rows), "bytes": path.stat().st_size, "sha256": file_digest(path)}

    def _write_manifest(self, content: dict[str, Any]) -> None:
        with explained(self.path):
            content = {"format_version": FORMAT_VERSION, **content}
            write_json_atomically(self.path / "manifest.json", content)

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
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space" if full else "choose a folder that can be written"
        raise OSError(
            error.errno,
            f"cannot write to {folder}: {error.strerror or error}. Finished shards are kept and stay usable; {remedy} "
            "and run it again.",
        ) from error
