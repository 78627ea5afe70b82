"""A fault injector for writers: the process dies at each call that changes files, in turn."""

from __future__ import annotations

import gc
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freezealign.files import LOCK


class Killed(BaseException):
    """The process is dead: nothing that it calls from now on happens."""


class Deadly:
    """Counts the calls that change files; from call number ``last`` on none is made any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, last: float = float("inf")) -> None:
        self.calls, self.last = 0, last
        for name in ("replace", "rename", "unlink", "mkdir", "rmdir", "fsync"):
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))
        opened = Path.open

        def open_(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            return (opened if mode in ("r", "rb") else self.counted(opened))(path, mode, *args, **options)

        monkeypatch.setattr(Path, "open", open_)

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def deadly(*args: Any, **options: Any) -> Any:
            if self.calls >= self.last:
                raise Killed
            self.calls += 1
            return call(*args, **options)

        return deadly


def files_of(folder: Path) -> dict[str, bytes]:
    """All that is left; the lock of a dead process holds nothing, and nobody out."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def check_every_kill(run: Callable[[Path], Any], tmp_path: Path, fewest: int, but: str = "") -> None:
    """Kill ``run`` at each of its calls in turn, run it again, and compare all files ``but`` those of one name.

    What others note of them, a line of JSON each, is not compared either. It makes ``fewest`` calls or more.
    """
    run(tmp_path / "first")  # what is imported or cached once is written now
    with pytest.MonkeyPatch.context() as patch:
        counter = Deadly(patch)
        run(tmp_path / "whole")
    assert counter.calls >= fewest
    noted = re.compile(rb'"%b": .*' % re.escape(but.encode())) if but else re.compile(b"(?!)")
    expected = {name: noted.sub(b"", content) for name, content in files_of(tmp_path / "whole").items()}
    for last in range(counter.calls):
        folder = tmp_path / f"killed at {last}"
        with pytest.MonkeyPatch.context() as patch:
            Deadly(patch, last)
            try:
                run(folder)
                pytest.fail(f"call {last} was not made")
            except Killed:
                pass
        gc.collect(1)  # the lock goes with the frames that hold it, as with a process
        run(folder)
        found = {name: noted.sub(b"", content) for name, content in files_of(folder).items()}
        differ = [
            name for name in {**expected, **found} if found.get(name) != expected.get(name) and Path(name).name != but
        ]
        assert not differ, f"killed at call {last}: {differ}"
        shutil.rmtree(folder)
