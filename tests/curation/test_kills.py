"""Kills: whichever change of a file is the last, the same call goes on, and ends where an undisturbed one does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kills import check_every_kill
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
from freezealign.files import exclusive

QUIET = {"show_progress_bar": False}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Save after every chunk, draw nothing, and do not wait for the disk."""
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
