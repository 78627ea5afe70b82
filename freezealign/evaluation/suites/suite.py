"""A suite as it stands in a YAML file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from freezealign.files import read_limited
from freezealign.forms import to_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("title", "about", "name", "evaluator", "text", "split", "samples", "benchmark"), (str,)),
    **dict.fromkeys(("descriptions", "protocol", "background", "candidates"), (str,)),
    **dict.fromkeys(("fold", "count", "objects", "side", "variants", "changed", "seed", "ignore_label"), (int,)),
    **dict.fromkeys(("short_side", "window", "stride"), (int,)),
    **dict.fromkeys(("strict", "renormalize", "squash"), (bool,)),
    **dict.fromkeys(("tasks", "languages", "metrics", "ks", "budgets"), (list,)),
    **dict.fromkeys(("data", "options", "windows"), (dict,)),
    **{"threshold": (int, float), "path": (str, dict), "class_names": (list, dict), "templates": (str, list, dict)},
}
"""What each key of a suite, a task, its data and its options holds."""
MEMBERS: dict[str, type] = {"languages": str, "metrics": str, "ks": int, "budgets": int, "path": str}
"""What a list or a mapping under a key holds."""


@dataclass(frozen=True)
class Task:
    """One evaluation of a suite.

    Args:
        name: Its folder and its heading: letters, digits, ``.``, ``_`` and ``-``.
        evaluator: Key of :data:`freezealign.evaluation.suites.tasks.EVALUATORS`.
        data: ``format``, which names one of :data:`freezealign.evaluation.suites.tasks.READERS`, and its arguments.
        options: Arguments of the evaluator.
        about: A sentence for the report.
    """

    name: str
    evaluator: str
    data: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the task as it stands in the file."""
        return asdict(self)

    @property
    def identity(self) -> str:
        """SHA-256 of the task: a result belongs to the task as it was when it was run."""
        return hashlib.sha256(to_json(self.to_dict())).hexdigest()


@dataclass(frozen=True)
class Suite:
    """Evaluations that belong together.

    Args:
        title: Of the report.
        tasks: What is run, in this order.
        about: Below the title.
    """

    title: str
    tasks: tuple[Task, ...]
    about: str = ""

    @classmethod
    def load(cls, source: str | PathLike[str]) -> Suite:
        """Read a YAML file, or one that comes with the library: ``poster``, ``offline``.

        Raises:
            FileNotFoundError: If there is neither.
            ValueError: If the file is not a suite; the message names what is wrong.
        """
        import yaml

        known = builtin_suites()
        path = resources.files(__package__) / f"{source}.yaml" if str(source) in known else Path(source)
        try:
            return cls.from_dict(yaml.safe_load(read_limited(Path(str(path))).decode()))
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no suite '{source}': give a YAML file or one of {known}.") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"{source} is not a suite: {error}") from None

    @classmethod
    def from_dict(cls, content: Any) -> Suite:
        """Return the suite that a parsed file describes.

        Raises:
            ValueError: If a key is missing or unknown or holds the wrong thing, or a task's name is not one or occurs
                twice.
        """
        _check_keys(cls, content, "a suite")
        if not content["tasks"]:
            raise ValueError("'tasks' is a list of at least one task.")
        for entry in content["tasks"]:
            _check_keys(Task, entry, "a task")
        tasks = tuple(Task(**entry) for entry in content["tasks"])
        names = [task.name for task in tasks]
        for name in names:
            if not NAME.fullmatch(name) or names.count(name) > 1:
                raise ValueError(f"each task needs a name of its own, of letters, digits, ._ and -; got {name!r}.")
        for task in tasks:
            try:
                to_json(task.to_dict())
            except (TypeError, ValueError) as error:  # YAML has dates and infinities
                raise ValueError(f"task {task.name!r} holds what JSON has not: {error}; write it in quotes.") from None
        return cls(**{**content, "tasks": tasks})


def builtin_suites() -> list[str]:
    """Return the names of the suites that come with the library."""
    folder = resources.files(__package__)
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _check_keys(kind: type, content: Any, what: str) -> None:
    """Raise a ``ValueError`` unless ``content`` is a mapping with the fields of a dataclass, each of its kind."""
    if not isinstance(content, dict):
        raise ValueError(f"{what} is a mapping, got {content!r}.")
    known = {entry.name for entry in fields(kind)}
    needed = {entry.name for entry in fields(kind) if entry.default is entry.default_factory}  # both are missing
    if missing := sorted(needed - set(content)):
        raise ValueError(f"{what} needs {missing}: {content!r}.")
    if unknown := sorted(set(content) - known, key=str):
        raise ValueError(f"{what} has {sorted(known)}, not {unknown}.")
    check_kinds(content, what)


def check_kinds(content: Mapping[str, Any], what: str) -> None:
    """Raise a ``ValueError`` unless each value is of the kind that its key holds."""
    for key, value in content.items():
        if not _is_any(value, KINDS.get(key, (object,))):
            kinds = " or ".join(kind.__name__ for kind in KINDS[key])
            raise ValueError(f"'{key}' of {what} is a {kinds}, got {value!r}.")
        for member in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            if key in MEMBERS and not _is_any(member, (MEMBERS[key],)):
                raise ValueError(f"'{key}' of {what} holds a {MEMBERS[key].__name__} each, got {member!r}.")


def _is_any(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (int not in kinds or not isinstance(value, bool))
