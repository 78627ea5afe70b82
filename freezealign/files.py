"""Reading and writing files: JSON and safetensors only, nothing outside a model's folder, nothing executed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

LOCK = ".lock"
JSON_LIMIT_BYTES = 64 * 2**20


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
        raise FileNotFoundError(f"there is no file {str(path)[:80]!r}") from None
    if kind != stat.S_IFREG:
        what = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}.get(kind, "a device")
        raise OSError(f"{path} is {what} and no file")


def open_file(path: str | Path) -> BinaryIO:
    """Open a file for reading after :func:`check_file`: what a user names may be anything."""
    check_file(path)
    return Path(path).open("rb")


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ValueError: If the file is missing, not a regular file, larger than 64 MiB, or not JSON.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{path} is not a regular file.")
        if path.stat().st_size > JSON_LIMIT_BYTES:
            raise ValueError(
                f"{path} is larger than {JSON_LIMIT_BYTES // 2**20} MiB; this is not what freezealign writes."
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent}: '{path.name}' is missing; this folder is not complete.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}).") from None


def read_object(path: Path, required: Mapping[str, type | tuple[type, ...]] | Iterable[str] = ()) -> dict[str, Any]:
    """Parse a JSON file that holds an object with at least the ``required`` keys, of their types where they have one.

    Raises:
        ValueError: If it is missing, not JSON, not an object, lacks a key, or a value is of another type.
    """
    content = read_json(path)
    check_object(path, content, required)
    return dict(content)


def check_object(path: Path, content: Any, required: Mapping[str, type | tuple[type, ...]] | Iterable[str]) -> None:
    """Raise a ``ValueError`` unless a part of a JSON file is an object as :func:`read_object` says."""
    missing = [key for key in required if key not in content] if isinstance(content, dict) else ["an object"]
    if missing:
        raise ValueError(f"{path}: {missing} missing; this is not what freezealign writes.")
    for key, kind in required.items() if isinstance(required, Mapping) else ():
        if not isinstance(content[key], kind) or (isinstance(content[key], bool) and kind is int):
            raise ValueError(f"{path}: '{key}' is {str(content[key])[:80]!r}; this is not what freezealign writes.")


def check_version(path: Path, content: dict[str, Any], known: int) -> None:
    """Raise a ``ValueError`` if ``content`` states a ``format_version`` later than the one this code knows."""
    if content["format_version"] > known:
        raise ValueError(f"{path} was written by a later freezealign; upgrade: pip install -U freezealign")


def to_json(content: Any) -> bytes:
    """Return ``content`` as indented UTF-8 JSON with a final newline; NaN, which JSON has not, becomes null."""
    return (json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def write_json(path: Path, content: Any) -> None:
    """Write what :func:`to_json` gives."""
    path.write_bytes(to_json(content))


def write_json_atomically(path: Path, content: Any) -> None:
    """Write what :func:`to_json` gives; see :func:`write_atomically`."""
    write_atomically(path, lambda file: file.write(to_json(content)))


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that after a kill at any moment the old one or the new one is there, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def differences(begun: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what of ``identity`` is another in ``begun``, read from JSON: by key, there and here.

    >>> differences({"dim": 8, "text": {"name": "a"}}, {"dim": 8, "text": {"name": "b"}})
    {'text.name': ('a', 'b')}
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key, now in json.loads(to_json(identity)).items():
        before = begun.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            every = {**dict.fromkeys(before), **now}
            found |= {f"{key}.{inner}": pair for inner, pair in differences(before, every).items()}
        elif before != now:
            found[key] = (before, now)
    return found


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
        told = "; ".join(f"{key} = {before}, this run has {now}" for key, (before, now) in other.items())
        raise ValueError(
            f"the {what} in {folder} was begun with {told}. Run it as it was begun to go on with it, or choose another "
            "folder."
        )
    return begun


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


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, from whatever device they are on; see :func:`write_atomically`."""
    content = to_safetensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_atomically(path, lambda file: file.write(content))


def load_tensors(path: Path, module: nn.Module) -> None:
    """Load a safetensors file into ``module``; names and shapes must agree exactly, and values be finite.

    Raises:
        ValueError: If the file is missing or damaged, names or shapes differ, or a value is NaN or infinite.
    """
    check_shapes(path, module)
    tensors = load_file(str(path))
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: '{name}' holds NaN or infinity; these weights are damaged.")
    module.load_state_dict(tensors)


def check_shapes(path: Path, module: nn.Module) -> None:
    """Compare names and shapes in a safetensors file with those of ``module``, which may be on the meta device.

    Raises:
        ValueError: If the file is missing or damaged, or names or shapes differ.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent}: '{path.name}' is missing; this is not a complete model folder.")
    try:
        with safe_open(str(path), "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}).") from None
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if set(shapes) != set(expected):
        missing, extra = sorted(set(expected) - set(shapes)), sorted(set(shapes) - set(expected))
        raise ValueError(f"{path}: missing tensors {missing}, unexpected tensors {extra}.")
    for name, shape in shapes.items():
        if shape != expected[name]:
            raise ValueError(f"{path}: '{name}' has shape {shape}, expected {expected[name]}.")


def inside(root: Path, relative: str) -> Path:
    """Return ``root / relative``.

    Raises:
        ValueError: If the result would lie outside ``root``.
    """
    path = (root / relative).resolve()
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


def tensor_digest(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of ``tensors``, in sorted order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
