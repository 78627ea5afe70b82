"""Every value of a JSON file replaced by odd ones in turn, and files that are none: what no reader may trip over."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

SECONDS = 1.0
"""Of the processor; a reader that takes longer allocates or counts."""
GONE = object()


def nested(depth: int) -> list:
    return [] if depth == 0 else [nested(depth - 1)]


ODD: dict[str, Any] = {
    "gone": GONE,
    "null": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "thirty million": 30_000_000,
    "huge": 10**40,
    "a half": 0.5,
    "NaN": float("nan"),
    "no text": "",
    "a text": "x",
    "a path out": "../../x",
    "a zero byte": "a\0b",
    "a long text": "x" * 5000,
    "no list": [],
    "a list": [1, "x"],
    "no object": {},
    "an object": {"x": 1},
    "deep": nested(60),
    "too deep": nested(900),
}
WHOLE: dict[str, bytes] = {
    "empty": b"",
    "half": b'{"a": ',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "long number": b'{"format_version": ' + b"9" * 5000 + b"}",
    "not UTF-8": b"\xff\xfe{}",
    "zero bytes": bytes(100),
    "a list": b"[]",
    "a text": b'"x"',
}


def values(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """The way to every value of parsed JSON, objects and lists included."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from values(value, (*path, key))


def replaced(content: Any, path: tuple, value: Any) -> Any:
    changed = deepcopy(content)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


def damages(file: Path) -> Iterator[str]:
    """Damage a JSON file in every way, one after another, saying how; it is whole again at the end."""
    good = file.read_bytes()
    content = json.loads(good)
    try:
        for path in values(content):
            for name, value in ODD.items():
                file.write_text(json.dumps(replaced(content, path, value)))
                yield f"{'.'.join(map(str, path))}: {name}"
        for name, whole in WHOLE.items():
            file.write_bytes(whole)
            yield name
    finally:
        file.write_bytes(good)


def not_files(file: Path) -> Iterator[str]:
    """Put what is no file in the place of one."""
    good = file.read_bytes()
    makers: dict[str, Callable[[], Any]] = {
        "a pipe": lambda: os.mkfifo(file),
        "a folder": file.mkdir,
        "a device": lambda: file.symlink_to("/dev/zero"),
        "a link to itself": lambda: file.symlink_to(file),
        "a link to nothing": lambda: file.symlink_to("nothing"),
    }
    for name, make in makers.items():
        file.unlink()
        make()
        yield name
        if file.is_dir():
            file.rmdir()
        else:
            file.unlink()
        file.write_bytes(good)


def faults(damage: Iterator[str], load: Callable[[], None], told: str) -> list[str]:
    """What ``load`` does with each damage that it may not: it may be as if nothing were, or raise a ``ValueError``
    that has ``told`` in it."""
    found = []
    for name in damage:
        start = time.process_time()
        try:
            load()
        except (ValueError, ConnectionError) as error:
            if told not in str(error):
                found.append(f"{name}: {error}")
        except BaseException as error:
            found.append(f"{name}: {type(error).__name__}: {error}")
        if time.process_time() - start > SECONDS:
            found.append(f"{name}: took {time.process_time() - start:.1f} s")
    return found
