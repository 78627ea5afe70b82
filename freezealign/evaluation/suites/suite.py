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

from freezealign.files import to_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
KINDS = {"title": str, "tasks": list, "about": str, "name": str, "evaluator": str, "data": dict, "options": dict}
"""What each key of a suite or a task holds."""


@dataclass(frozen=True)
class Task:
    """One evaluation of a suite.

    Args:
        name: Its folder and its heading: letters, digits, ``.``, ``_`` and ``-``.
        evaluator: Key of :data:`freezealign.evaluation.suites.tasks.EVALUATORS`.
        data: ``format``, which names one of :data:`freezealign.evaluation.suites.formats.READERS`, and its arguments.
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

        try:
            return cls.from_dict(yaml.safe_load(_read(source)))
        except (yaml.YAMLError, ValueError) as error:
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
        return cls(**{**content, "tasks": tasks})


def builtin_suites() -> list[str]:
    """Return the names of the suites that come with the library."""
    folder = resources.files(__package__)
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _read(source: str | PathLike[str]) -> str:
    if str(source) in builtin_suites():
        return resources.files(__package__).joinpath(f"{source}.yaml").read_text(encoding="utf-8")
    try:
        return Path(source).read_text(encoding="utf-8")
    except FileNotFoundError:
        known = builtin_suites()
        raise FileNotFoundError(f"there is no suite '{source}': give a YAML file or one of {known}.") from None


def _check_keys(kind: type, content: Any, what: str) -> None:
    """Raise a ``ValueError`` unless ``content`` is a mapping with the fields of a dataclass, each of its kind."""
    if not isinstance(content, dict):
        raise ValueError(f"{what} is a mapping, got {content!r}.")
    known = {entry.name for entry in fields(kind)}
    needed = {"title", "tasks"} if kind is Suite else {"name", "evaluator", "data"}
    if missing := sorted(needed - set(content)):
        raise ValueError(f"{what} needs {missing}: {content!r}.")
    if unknown := sorted(set(content) - known):
        raise ValueError(f"{what} has {sorted(known)}, not {unknown}.")
    for key, value in content.items():
        if not isinstance(value, KINDS[key]):
            raise ValueError(f"'{key}' of {what} is a {KINDS[key].__name__}, got {value!r}.")
