"""Kills: whichever change of a file is the last, the same call goes on, and ends where an undisturbed one does."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made import make_prototypes, make_store, make_vectors, write_shards

from freezealign.curation import (
    CaptionLength,
    Scoring,
    approximate,
    curate,
    find_shards,
    open_pool,
    score_pool,
    write_subset,
)
from freezealign.curation import card as card_module
from freezealign.files import LOCK, exclusive

QUIET = {"show_progress_bar": False}


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
            return (opened if "r" in mode else self.counted(opened))(path, mode, *args, **options)

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


def check_every_kill(run: Callable[[Path], Any], tmp_path: Path, fewest: int) -> None:
    """Kill ``run`` at each of its calls in turn, run it again, and compare; it makes ``fewest`` calls or more."""
    with pytest.MonkeyPatch.context() as patch:
        counter = Deadly(patch)
        run(tmp_path / "whole")
    assert counter.calls >= fewest
    expected = files_of(tmp_path / "whole")
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
        assert files_of(folder) == expected, f"killed at call {last}"
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Save after every chunk, draw nothing, and do not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(Scoring, "chunk", 16)
    monkeypatch.setattr(Scoring, "save_seconds", -1)
    for name in ("_draw_coverage", "_draw_scores"):
        monkeypatch.setattr(card_module, name, lambda *_: None)


def test_curation_goes_on_after_a_kill_at_any_call(tmp_path):
    make_store(make_vectors(40)).save(tmp_path / "store")
    pool, prototypes = open_pool(tmp_path / "store"), make_prototypes()
    check_every_kill(
        lambda folder: curate(pool, prototypes, folder, per_concept=4, filters=[CaptionLength()], **QUIET), tmp_path, 60
    )


@pytest.mark.slow
def test_approximate_search_goes_on_after_a_kill_at_any_call(tmp_path, monkeypatch):
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(Scoring, "chunk", 100)
    scoring = Scoring([open_pool(make_store(make_vectors(260)))], [make_prototypes()], 5)
    trained = approximate._train(faiss, scoring, 0)  # which takes most of the time, and touches no file
    monkeypatch.setattr(approximate, "_train", lambda *_: faiss.clone_index(trained))
    check_every_kill(lambda folder: score_pool(scoring, folder, engine="faiss", **QUIET), tmp_path, 20)


def test_subset_goes_on_after_a_kill_at_any_call(tmp_path):
    """Also its damage is told, which is known only while the damaged shard is read."""
    shards = find_shards(write_shards(tmp_path / "shards"))
    shards[1].write_bytes(shards[1].read_bytes()[:-11_000])

    def run(folder: Path) -> None:
        damage = write_subset(shards, ["pair-1", "pair-4", "pair-7", "pair-11"], folder, **QUIET)
        assert list(damage) == ["00001.tar"]

    check_every_kill(run, tmp_path, 15)


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be locked twice there")
@pytest.mark.parametrize("place", ["out", "scores"])
def test_folder_that_another_process_writes_to_is_left_alone(place, tmp_path):
    pool = open_pool(make_store(make_vectors(40)))
    with exclusive(tmp_path / place), pytest.raises(RuntimeError, match="another process is writing"):
        curate(pool, make_prototypes(), tmp_path / "out", per_concept=4, scores=tmp_path / "scores", **QUIET)
    curate(pool, make_prototypes(), tmp_path / "out", per_concept=4, scores=tmp_path / "scores", **QUIET)
    with exclusive(tmp_path / "scores"):  # what is finished may be read by several at once
        curate(pool, make_prototypes(), tmp_path / "second", per_concept=4, scores=tmp_path / "scores", **QUIET)


def test_scores_have_a_folder_of_their_own(tmp_path):
    pool = open_pool(make_store(make_vectors(40)))
    with pytest.raises(ValueError, match="scores have a folder of their own"):
        curate(pool, make_prototypes(), tmp_path / "out", per_concept=4, scores=tmp_path / "out", **QUIET)
    assert not (tmp_path / "out").exists()
