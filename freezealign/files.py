"""Reading and writing files: JSON and safetensors only, nothing outside a model's folder, nothing executed."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import reprlib
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from safetensors.torch import save as to_safetensors
from torch import Tensor

from freezealign.forms import differences, formed, to_json
from freezealign.words import CONTROL

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
LOCK = ".lock"
JSON_LIMIT_BYTES = 64 * 2**20
JSON_LIMIT_DEPTH = 100


def is_file(path: str | Path) -> bool:
    """Whether ``path`` is an existing file; a string longer than a path may be is none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Whether ``path`` is an existing folder; a string longer than a path may be is none."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def check_file(path: str | Path) -> None:
    """Raise an ``OSError`` if ``path`` is no regular file, by what it is: reading a pipe or a device may never end."""
    try:
        kind = stat.S_IFMT(Path(path).stat().st_mode)
    except (OSError, ValueError):
        raise FileNotFoundError(f"there is no file {str(path)[:300]!r}") from None
    if kind != stat.S_IFREG:
        what = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}.get(kind, "a device")
        raise OSError(f"{path} is {what} and no file")


def open_file(path: str | Path) -> BinaryIO:
    """Open a file for reading after :func:`check_file`: what a user names may be anything."""
    check_file(path)
    return Path(path).open("rb")


def read_limited(path: str | Path, limit: int = JSON_LIMIT_BYTES) -> bytes:
    """Return what is in a file.

    Raises:
        OSError: If it is missing, no regular file, or larger than ``limit`` bytes.
    """
    content = bytearray()
    with open_file(path) as file:
        while len(content) <= limit and (part := file.read(2**16)):  # read(limit) would take as much memory at once
            content += part
    if len(content) > limit:
        raise OSError(f"{path} is larger than {limit // 2**20} MiB")
    return bytes(content)


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ValueError: If it is missing, no regular file, larger than 64 MiB, nested deeper than 100, or not JSON.
    """
    regular(path, JSON_LIMIT_BYTES)
    try:
        content = json.loads(read_limited(path).decode())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}).") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is no JSONDecodeError
        raise ValueError(f"{path}: not valid JSON ({error}).") from None
    level: list[Any] = [[content]]
    for _ in range(JSON_LIMIT_DEPTH):
        containers = [value.values() if isinstance(value, dict) else value for value in level]
        level = [inner for values in containers for inner in values if isinstance(inner, (dict, list))]
    if level:
        raise ValueError(f"{path}: nested deeper than {JSON_LIMIT_DEPTH}; this is not what freezealign writes.")
    return content


def regular(path: Path, limit: int | None = None) -> Path:
    """Return ``path`` if it is a file; a pipe or a device may have no end.

    Raises:
        ValueError: If it is missing, no regular file, or larger than ``limit`` bytes.
    """
    try:
        check_file(path)
        size = path.stat().st_size
    except FileNotFoundError:
        raise ValueError(f"{path.parent}: '{path.name}' is missing; this folder is not complete.") from None
    except OSError as error:
        raise ValueError(f"{error}; it is not what freezealign writes.") from None
    if limit is not None and size > limit:
        raise ValueError(f"{path} is larger than {limit // 2**20} MiB; this is not what freezealign writes.")
    return path


def read_object(path: Path, form: Any = ()) -> Any:
    """Parse a JSON file that holds an object.

    Args:
        path: The file.
        form: What it must hold: keys, or a form that :func:`~freezealign.forms.formed` takes.

    Raises:
        ValueError: If it is missing, not JSON, not an object, lacks a key, or a value is of another type.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: it holds no object; this is not what freezealign writes.")
    return formed(path, content, form if isinstance(form, (Mapping, type)) else dict.fromkeys(form, Any))


def write_json_atomically(path: Path, content: Any) -> None:
    """Write what :func:`~freezealign.forms.to_json` gives; see :func:`write_atomically`."""
    write_atomically(path, lambda file: file.write(to_json(content)))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write texts, one a line, atomically.

    A text that would break its line, or that a terminal would act on, is written as a JSON string: between quotation
    marks, with escapes. So is one that begins with a quotation mark, so that :func:`read_lines` gives back every text.
    """
    content = "".join(f"{as_line(text)}\n" for text in lines).encode()
    write_atomically(path, lambda file: file.write(content))


def as_line(text: str) -> str:
    """Return how :func:`write_lines` writes a text."""
    return json.dumps(text) if text.startswith('"') or CONTROL.search(text) else text


def read_lines(path: Path) -> list[str]:
    """Read what :func:`write_lines` wrote, or any file with a text a line: what is no JSON string stands as it is.

    Raises:
        ValueError: If it is missing, no regular file, or not UTF-8.
    """
    try:
        lines = regular(path).read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}).") from None
    return [_parse_line(line.removesuffix("\r")) for line in (lines if lines[-1] else lines[:-1])]


def _parse_line(line: str) -> str:
    try:
        return str(json.loads(line)) if line.startswith('"') else line
    except ValueError:
        return line


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that after a kill at any moment the old one or the new one is there, whole.

    Processes that write it at once do so one after the other, so that the last one's stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with _open_alone(temporary) as file:
        try:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:  # Windows moves no open file
                file.close()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _open_alone(path: Path) -> BinaryIO:
    """Open a file for writing, empty, when no other process has it; what a killed one left there is overwritten."""
    if fcntl is None:
        return path.open("wb")
    while True:
        path.touch()
        with suppress(FileNotFoundError):  # the other one has put it in its place, or taken it away
            file = path.open("r+b")
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate()
                return file
            file.close()


def claim(path: Path, identity: Mapping[str, Any], what: str, **more: Any) -> dict[str, Any]:
    """Begin a run in the folder of ``path``, or go on with the one that was begun there.

    Call it before anything else is written there: a kill at any moment leaves a folder that holds nothing, or one that
    says whose it is. Keep other processes out with :func:`exclusive`.

    Args:
        path: The JSON file that holds the identity; the folder is the run's own.
        identity: All that the run depends on, as JSON.
        what: What such a run makes, for errors.
        **more: What the file is to hold besides, when it is begun.

    Returns:
        What the file holds.

    Raises:
        FileExistsError: If the folder holds something else.
        ValueError: If it was begun with another identity; the message names all that differs, and both values.
    """
    folder = path.parent
    if not path.is_file():
        if folder.exists() and (strangers := [entry.name for entry in folder.iterdir() if not is_leftover(entry)]):
            raise FileExistsError(f"{folder} holds {strangers[0]!r} and no {what}; choose another folder.")
        write_json_atomically(path, {**more, **identity})
    begun = read_object(path)
    if other := differences(begun, identity):
        told = "; ".join(f"{key} = {_cut(before)}, this run has {_cut(now)}" for key, (before, now) in other.items())
        raise ValueError(
            f"the {what} in {folder} was begun with {told}. Run it as it was begun to go on with it, or choose another "
            "folder."
        )
    return begun


def _cut(value: Any, limit: int = 2000) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def is_leftover(path: Path) -> bool:
    """Whether a file is what a killed writer left: a lock, or the beginning of a file that was never put in place."""
    return path.name == LOCK or (path.name.startswith(".") and path.name.endswith(".tmp"))


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Make a folder, and keep every other process out of it while the block runs.

    Raises:
        FileExistsError: If a file is in its place.
        OSError: If the folder cannot be written.
        RuntimeError: If another process is writing there.
    """
    from filelock import FileLock, Timeout

    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeError(f"another process is writing to {folder}; wait for it, or stop it.") from None
    try:
        yield
    finally:
        # before the release: a file unlinked after it may already be the lock of the next writer
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def write_arrays_atomically(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write arrays as safetensors with ``metadata``, of one entry if files are to be compared: their order varies."""
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata)
    write_atomically(path, lambda file: file.write(content))


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return what :func:`write_arrays_atomically` wrote: the arrays, and the metadata.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    try:
        with safe_open(str(path), "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            return arrays, file.metadata() or {}
    except (OSError, SafetensorError, TypeError, AttributeError, ValueError) as error:  # of dtypes NumPy has not, too
        raise ValueError(f"{path}: not a readable safetensors file ({error}).") from None


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, from whatever device they are on; see :func:`write_atomically`."""
    content = to_safetensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_atomically(path, lambda file: file.write(content))


def load_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a safetensors file; names and shapes must be those of ``expected``, which may be on the meta device.

    They are compared before anything is read, and the values must be finite.

    Raises:
        ValueError: If the file is missing or damaged, names or shapes differ, or a value is NaN or infinite.
    """
    try:
        with safe_open(str(regular(path)), "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no dict
            if missing := set(expected) ^ set(shapes):
                absent, extra = sorted(missing & set(expected)), sorted(missing & set(shapes))
                raise ValueError(f"{path}: missing tensors {absent}, unexpected tensors {extra}.")
            for name, shape in shapes.items():
                if shape != tuple(expected[name].shape):
                    raise ValueError(f"{path}: '{name}' has shape {shape}, expected {tuple(expected[name].shape)}.")
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}).") from None
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: '{name}' holds NaN or infinity; these weights are damaged.")
    return tensors


def inside(root: Path, relative: str) -> Path:
    """Return ``root / relative``.

    Raises:
        ValueError: If the result would lie outside ``root``.
    """
    try:
        path = (root / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long, in a circle, or with a zero byte
        raise ValueError(f"{root}: {reprlib.repr(relative)} names no file ({error}).") from None
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"{root}: '{relative}' points outside the model folder; refusing to read it.")
    return path


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def changed_files(root: Path, digests: Mapping[str, str]) -> list[str]:
    """Return which of a folder's files, by their paths in it, have not the SHA-256 that was noted.

    Raises:
        ValueError: If one is missing, no regular file, or its folder lies elsewhere.
    """
    paths = {name: inside(root, str(Path(name).parent)) / Path(name).name for name in digests}
    return [name for name, path in paths.items() if file_digest(regular(path)) != digests[name]]


def tensor_digest(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of ``tensors``, in sorted order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
