"""Ways to damage what is read: bytes, JSON, and folders of files.

A damaged folder is told by what lies in it instead: ``{"manifest.json": b"[]", "a.png": None, "b.png": Link("a")}``. So
a failing input is short, and can be kept as an ``@example``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Damage = Mapping[str, Any]
"""By path what lies there instead: bytes, ``None`` for nothing, a :class:`Link`, an :class:`Edit`, or ``FOLDER``."""
FOLDER = "a folder"
NUMBERS = [0, 1, -1, 2, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), True, False]
WORDS = ["", " ", "x", "a" * 5000, "\ud800", "\0", "../x", "/etc/passwd", "a/b", "äöü", "1", "nan"]
NESTED: list[Any] = [None, [], {}, [None], {"": None}, [[]], {"a": {"b": 1}}, ["x"], [0, "x"]]
ODD = [*NUMBERS, *WORDS, *NESTED]
NOT_JSON = [
    b"",
    b"{",
    b"[" * 100_000,
    b'{"a":' * 3000,
    b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}",
    b"1" * 5000,
    b"{}{}",
    b"NaN",
]


@dataclass(frozen=True)
class Link:
    """A symbolic link, relative to where it lies or absolute."""

    target: str


@dataclass(frozen=True)
class Edit:
    """The file with a piece of it replaced, once; for examples that are to be read."""

    old: bytes
    new: bytes


# Bytes


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Return ``content`` with one to three faults: flipped bits, numbers, cuts, and pieces moved, doubled or put in."""
    for _ in range(draw(st.integers(1, 3))):
        content = draw(st.sampled_from(FAULTS))(draw, content)
    return content


def _at(draw: st.DrawFn, content: bytes) -> int:
    return draw(st.integers(0, max(len(content) - 1, 0)))


def _piece(draw: st.DrawFn, content: bytes) -> bytes:
    start = _at(draw, content)
    return content[start : start + draw(st.sampled_from([1, 2, 4, 16, 64, 512]))]


def _flip(draw: st.DrawFn, content: bytes) -> bytes:
    at, bit = _at(draw, content), draw(st.integers(0, 7))
    return content[:at] + bytes([byte ^ 1 << bit for byte in content[at : at + 1]]) + content[at + 1 :]


def _number(draw: st.DrawFn, content: bytes) -> bytes:
    at, size = _at(draw, content), draw(st.sampled_from([1, 2, 4, 8]))
    value = draw(st.sampled_from([0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1]))
    return content[:at] + value.to_bytes(size, draw(st.sampled_from(["little", "big"]))) + content[at + size :]


def _cut(draw: st.DrawFn, content: bytes) -> bytes:
    return content[: _at(draw, content)]


def _remove(draw: st.DrawFn, content: bytes) -> bytes:
    at = _at(draw, content)
    return content[:at] + content[at + draw(st.sampled_from([1, 2, 3, 16, 512])) :]


def _insert(draw: st.DrawFn, content: bytes) -> bytes:
    at, new = _at(draw, content), draw(st.sampled_from([b"\0", b"\n", b'"', b",", b"\xff" * 4, b"\r", b"\\u"]))
    return content[:at] + (new if draw(st.booleans()) else _piece(draw, content)) + content[at:]


def _overwrite(draw: st.DrawFn, content: bytes) -> bytes:
    at, piece = _at(draw, content), _piece(draw, content)
    return content[:at] + piece + content[at + len(piece) :]


def _append(draw: st.DrawFn, content: bytes) -> bytes:
    return content + draw(st.sampled_from([b"\0", b"\0" * 1024, b"x", content]))


FAULTS = [_flip, _flip, _number, _number, _cut, _remove, _insert, _overwrite, _append]


# JSON


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """Return the way to every value of a JSON, the whole of it too."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


@st.composite
def damaged_json(draw: st.DrawFn, content: Any, indent: int | None = 2) -> bytes:
    """Return a JSON with a value at any place replaced, wrapped, nested deeply, copied there from another, or gone."""
    content = json.loads(json.dumps(content))
    everywhere = places(content)
    place = draw(st.sampled_from(everywhere))
    parent, old = None, content
    for key in place:
        parent, old = old, old[key]
    kind = draw(st.sampled_from(["odd", "odd", "odd", "other", "wrapped", "deep", "gone", "renamed", "spelled"]))
    if kind == "gone" and parent is not None:
        del parent[place[-1]]
        return _encoded(content, indent)
    if kind == "renamed" and isinstance(parent, dict):
        parent[draw(st.sampled_from(WORDS))] = parent.pop(place[-1])
        return _encoded(content, indent)
    new = {
        "other": lambda: _value(content, draw(st.sampled_from(everywhere))),
        "wrapped": lambda: draw(st.sampled_from([[old], {"x": old}, [old, old]])),
        "deep": lambda: json.loads("[" * 50 + "]" * 50),
        "spelled": lambda: str(old),
    }.get(kind, lambda: draw(st.sampled_from(ODD)))()
    if parent is None:
        return _encoded(new, indent)
    new = json.loads(json.dumps(new))  # a copy: a value put into itself would have no end
    parent[place[-1]] = new
    return _encoded(content, indent)


def _value(content: Any, place: Sequence) -> Any:
    for key in place:
        content = content[key]
    return content


def _encoded(content: Any, indent: int | None) -> bytes:
    """Return a JSON as the library writes it, so that it differs where it is damaged alone."""
    return json.dumps(content, indent=indent).encode() + b"\n" * bool(indent)


# Folders


@st.composite
def damaged_folder(draw: st.DrawFn, files: Mapping[str, bytes], only: Sequence[str] = ()) -> Damage:
    """Return what lies in a folder instead of one or two of its ``files``, those with names in ``only`` if given."""
    names = [name for name in sorted(files) if not only or name.endswith(tuple(only))]
    damaged = draw(st.sets(st.sampled_from(names), min_size=1, max_size=2))
    return {name: draw(_damaged_file(name, files)) for name in sorted(damaged)}


@st.composite
def _damaged_file(draw: st.DrawFn, name: str, files: Mapping[str, bytes]) -> Any:
    kind = draw(st.sampled_from(["content"] * 8 + ["swapped", "not json", "gone", "link"]))
    if kind == "swapped":
        return files[draw(st.sampled_from(sorted(files)))]
    if kind == "not json":
        return draw(st.sampled_from(NOT_JSON))
    if kind in ("gone", "link"):
        itself = name.rpartition("/")[2]
        return draw(st.sampled_from([None, FOLDER, *map(Link, (itself, "/etc/passwd", "/dev/null", "/dev/zero"))]))
    if name.endswith(".json") and draw(st.integers(0, 3)):
        return draw(damaged_json(json.loads(files[name])))
    return draw(damaged_bytes(files[name]))


def in_short(files: Mapping[str, bytes], damage: Damage) -> Damage:
    """Return the same damage, with an :class:`Edit` for a file that is changed in one place."""
    contents = {name: new for name, new in damage.items() if isinstance(new, bytes)}
    return {**damage, **{name: _as_edit(files.get(name, b""), new) for name, new in contents.items()}}


def equal_bytes(one: bytes, other: bytes) -> int:
    """Return how many bytes at the beginning are the same."""
    return next((n for n, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))


def _as_edit(old: bytes, new: bytes) -> bytes | Edit:
    start = equal_bytes(old, new)
    end = equal_bytes(old[start:][::-1], new[start:][::-1])
    for more in range(4, start + 1):  # letters before, until they are the first of their kind
        piece = old[start - more : len(old) - end]
        if old.find(piece) == start - more:
            change = Edit(piece, new[start - more : len(new) - end])
            return change if len(repr(change)) < len(repr(new)) else new
    return new


def write_folder(root: Path, files: Mapping[str, bytes], damage: Damage) -> Path:
    """Write a folder of ``files``, and what the ``damage`` says instead of some of them."""
    for name, content in {**files, **damage}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content == FOLDER:
            path.mkdir()
        elif isinstance(content, Link):
            path.symlink_to(content.target)
        elif isinstance(content, Edit):
            assert content.old in files[name], f"there is no {content.old!r} in {name}"
            path.write_bytes(files[name].replace(content.old, content.new, 1))
        elif content is not None:
            path.write_bytes(content)
    return root


def read_folder(root: Path) -> dict[str, bytes]:
    """Return the files of a folder by their paths."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
