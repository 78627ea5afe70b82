"""JSON as values: what it must hold, how it is written, and in what two of them differ."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from typing_extensions import NotRequired

OPTIONAL: Any = NotRequired


def formed(path: Path, value: Any, form: Any, key: str = "") -> Any:
    """Return a value read from a JSON file, once it is of a type; dataclasses in it are made.

    Args:
        path: The file, for errors.
        value: What was read.
        form: A plain type (``float`` is any finite number), ``Literal``, a range, a union or tuple of such, ``list[…]``
            or ``dict[str, …]``; or keys with their forms: a mapping, a ``TypedDict``, or a dataclass, which has no
            other keys.
        key: Where in the file, with dots.

    Raises:
        ValueError: With the file and the key, if it is of another.
    """
    kind, parts = get_origin(form) or form, get_args(form)
    if kind is OPTIONAL:
        return formed(path, value, parts[0], key)
    if kind in (Union, UnionType):
        for part in parts:
            if _is_a(value, part) or (isinstance(value, dict) and _known_keys(part) is not None):
                return formed(path, value, part, key)
    place = f"{key}." if key else ""
    if isinstance(value, dict) and (known := _known_keys(form)) is not None:
        missing = [name for name, (_, needed) in known.items() if needed and name not in value]
        unknown = sorted(set(value) - set(known)) if is_dataclass(form) else []
        for what, names in (("missing", missing), ("unknown", unknown)):
            if names:
                told = [f"{place}{name}" for name in names]
                raise ValueError(f"{path}: {reprlib.repr(told)} {what}; this is not what freezealign writes.")
        own = {name: formed(path, value[name], one, place + name) for name, (one, _) in known.items() if name in value}
        return kind(**own) if is_dataclass(form) else value | own
    if isinstance(value, dict) and kind is dict and parts:
        return {name: formed(path, one, parts[1], place + name) for name, one in value.items()}
    if isinstance(value, list) and kind is list and parts:
        return [formed(path, one, parts[0], f"{place}{number}") for number, one in enumerate(value)]
    if not _is_a(value, form):
        raise ValueError(f"{path}: '{key}' is {reprlib.repr(value)}; this is not what freezealign writes.")
    return value


def _known_keys(form: Any) -> dict[str, tuple[Any, bool]] | None:
    """Return the keys that a form names, each with its own form and whether it is needed; ``None`` if it names none."""
    optional: set[str] = set()
    if is_dataclass(form):
        optional = {own.name for own in fields(form) if (own.default, own.default_factory) != (MISSING, MISSING)}
    elif not (isinstance(form, Mapping) or is_typeddict(form)):
        return None
    hints = form if isinstance(form, Mapping) else _hints(form, include_extras=True)
    return {name: (own, name not in optional and get_origin(own) is not OPTIONAL) for name, own in hints.items()}


_hints = cache(get_type_hints)


def _is_a(value: Any, form: Any) -> bool:
    """Whether a value is of a type as a whole, whatever is in it; a truth value is no number."""
    kind: Any = get_origin(form) or form
    parts = form if isinstance(form, tuple) else get_args(form)
    if isinstance(form, tuple) or kind in (Union, UnionType):
        return any(_is_a(value, part) for part in parts)
    if isinstance(form, range):
        return type(value) is int and value in form
    if kind is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if kind is float:
        return type(value) in (int, float) and abs(value) < math.inf
    return kind is Any or type(value) is kind


def parse_object(path: Path, content: str, form: Any) -> Any:
    """Parse JSON that stands in the metadata of the file ``path``, and is of a form that :func:`formed` takes.

    Raises:
        ValueError: If it is something else.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}).") from None
    return formed(path, value, form)


def check_version(path: Path, content: Mapping[str, Any], known: int) -> None:
    """Raise a ``ValueError`` if ``content`` states a ``format_version`` later than the one this code knows."""
    if content["format_version"] > known:
        raise ValueError(f"{path} was written by a later freezealign; upgrade: pip install -U freezealign")


def to_json(content: Any) -> bytes:
    """Return ``content`` as indented UTF-8 JSON with a final newline; NaN, which JSON has not, becomes null.

    Lone surrogates, which file names may hold and UTF-8 may not, are escaped as JSON does it, and come back when read.
    """
    text = json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "backslashreplace")


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


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
