"""One pass over a pool: the exact result, from every form of pool, whatever interrupts it."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from made import FORMS, cosines, make_pool, make_prototypes, make_store, make_vectors

from freezealign.curation import Pool, Scoring, engines, open_pool, score_pool
from freezealign.curation.engines import divide
from freezealign.curation.scoring import Scores
from freezealign.curation.top_k import NOTHING, TopK, rows_of, scores_of


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(Scoring, "chunk", 4)
    monkeypatch.setattr(Scoring, "read_chunks", 2)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def score(pool, folder, k=5, prototypes=None, **options):
    return score_pool(Scoring([pool], [prototypes or make_prototypes()], k), folder, show_progress_bar=False, **options)


@pytest.mark.parametrize("form", FORMS)
def test_best_are_those_of_all_cosines(form, tmp_path):
    vectors = make_vectors()
    found = score(make_pool(form, tmp_path, vectors), tmp_path / "scores")
    stored = vectors.astype(np.float16) if form == "arrays" else vectors
    exact = cosines(stored, make_prototypes())
    np.testing.assert_array_equal(rows_of(found.keys), np.argsort(-exact, axis=1)[:, :5])
    np.testing.assert_allclose(scores_of(found.keys), -np.sort(-exact, axis=1)[:, :5], atol=1e-6)
    assert (found.rows, found.unusable, found.recall) == (40, 0, None)


def test_several_encoders_count_by_their_mean(tmp_path):
    first, second = make_vectors(), make_vectors(seed=5, width=4)
    prototypes = [make_prototypes(), make_prototypes(seed=9, width=4)]
    pools = [open_pool(make_store(vectors)) for vectors in (first, second)]
    found = score_pool(Scoring(pools, prototypes, 40), tmp_path, show_progress_bar=False)
    exact = (cosines(first, prototypes[0]) + cosines(second, prototypes[1])) / 2
    np.testing.assert_allclose(scores_of(found.keys), -np.sort(-exact, axis=1), atol=1e-6)


def test_unusable_vectors_are_counted_and_never_chosen(tmp_path):
    vectors = make_vectors()
    vectors[3], vectors[17, 2], vectors[38, 0], vectors[5], vectors[6] = 0, np.nan, np.inf, 1e-30, 1e30
    found = score(open_pool(make_store(vectors)), tmp_path, k=40)
    assert found.unusable == 5
    for own in found.keys:
        assert set(rows_of(own[own != NOTHING]).tolist()) == set(range(40)) - {3, 5, 6, 17, 38}


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("tiles", [1, 5, 9])
def test_interrupted_pass_goes_on_and_finds_the_same(tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(Scoring, "save_seconds", -1)
    vectors, read = make_vectors(), []
    vectors[2] = 0
    pool = open_pool(make_store(vectors))
    whole = score(pool, tmp_path / "whole")
    original = TopK.update

    def update(self, scores, first):
        read.append(first)
        if len(read) == tiles + 1:
            raise Interrupted
        original(self, scores, first)

    monkeypatch.setattr(TopK, "update", update)
    with pytest.raises(Interrupted):
        score(pool, tmp_path / "halted")
    resumed = score(pool, tmp_path / "halted")
    assert read == [4 * t for t in range(tiles + 1)] + [4 * t for t in range(tiles, 10)]
    np.testing.assert_array_equal(resumed.keys, whole.keys)
    assert (resumed.rows, resumed.unusable) == (whole.rows, whole.unusable) == (40, 1)
    assert files_of(tmp_path / "halted") == ["request.json", "scores.safetensors"]


def test_finished_pass_is_not_made_again(tmp_path, monkeypatch):
    pool = open_pool(make_store(make_vectors()))
    first = score(pool, tmp_path)
    monkeypatch.setattr(engines, "score_range", lambda *_: pytest.fail("scored again"))
    np.testing.assert_array_equal(score(pool, tmp_path).keys, first.keys)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"k": 6}, "k"),
        ({"engine": "faiss"}, "approximate"),
        ({"prototypes": make_prototypes(seed=3)}, "prototypes"),
        ({"pool": open_pool(make_store(make_vectors(seed=4)))}, "pools"),
    ],
)
def test_scores_of_something_else_are_refused(change, key, tmp_path):
    score(open_pool(make_store(make_vectors())), tmp_path)
    arguments = {"pool": open_pool(make_store(make_vectors())), **change}
    with pytest.raises(ValueError, match=f"was begun with .*{key} = "):
        score(arguments.pop("pool"), tmp_path, **arguments)


@pytest.mark.parametrize("size", [0, 30, -20])
def test_damaged_or_short_file_is_an_error(size, tmp_path):
    pool = open_pool(make_store(make_vectors()))
    score(pool, tmp_path)
    path = tmp_path / "scores.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="cannot be read as scores"):
        score(pool, tmp_path)


def test_missing_state_of_a_range_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as scores"):
        Scores.read(tmp_path / "state-0-4.safetensors")


def run_slowly(folder: Path) -> None:
    Scoring.chunk, Scoring.read_chunks, Scoring.save_seconds = 4, 2, -1
    original = TopK.update

    def update(self, scores, first):
        time.sleep(0.1)
        original(self, scores, first)

    TopK.update = update
    score(open_pool(make_store(make_vectors())), folder)


def test_killed_pass_goes_on(tmp_path):
    whole = score(open_pool(make_store(make_vectors())), tmp_path / "whole")
    process = multiprocessing.get_context("fork").Process(target=run_slowly, args=(tmp_path / "killed",))
    process.start()
    state = tmp_path / "killed" / "state-0-40.safetensors"
    deadline = time.monotonic() + 60
    while not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert state.is_file()
    assert not (tmp_path / "killed" / "scores.safetensors").exists()
    np.testing.assert_array_equal(score(open_pool(make_store(make_vectors())), tmp_path / "killed").keys, whole.keys)


def test_what_does_not_go_together_is_refused():
    pool, prototypes = open_pool(make_store(make_vectors())), make_prototypes()
    with pytest.raises(ValueError, match="2 pools have 1 prototypes"):
        Scoring([pool, pool], [prototypes], 1)
    with pytest.raises(ValueError, match="the same concepts"):
        Scoring([pool, pool], [prototypes, make_prototypes(2)], 1)
    with pytest.raises(ValueError, match="hold the same pairs"):
        Scoring([pool, open_pool(make_store(make_vectors(7)))], [prototypes, prototypes], 1)
    for options, message in (
        ({"engine": "spark"}, "unknown engine 'spark'"),
        ({"device": "nonsense"}, "there is no device 'nonsense'"),
        ({"engine": "ray", "device": "cuda"}, "ray chooses its own"),
    ):
        with pytest.raises(ValueError, match=message):
            score_pool(Scoring([pool], [prototypes], 1), Path(), **options)


@pytest.mark.parametrize("rows", [1, 4, 5, 4 * 64, 4 * 64 + 1, 12345])
def test_ranges_are_whole_tiles_and_cover_the_pool(rows):
    pool = Pool("made", np.empty((rows, 6)), 6)
    ranges = divide(Scoring([pool], [make_prototypes()], 1))
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == rows
    assert all(start % 4 == 0 for start, _ in ranges)
    assert len(ranges) <= 64


def test_approximate_search_states_its_recall(tmp_path):
    pytest.importorskip("faiss")
    vectors = make_vectors(3000, width=16)
    pool, prototypes = open_pool(make_store(vectors)), make_prototypes(width=16)
    exact = score(pool, tmp_path / "exact", k=50, prototypes=prototypes)
    found = score(pool, tmp_path / "near", k=50, prototypes=prototypes, engine="faiss")
    hits = [np.isin(rows_of(own), rows_of(other)).mean() for own, other in zip(exact.keys, found.keys)]
    assert found.recall == pytest.approx(np.mean(hits))
    assert 0.2 < found.recall < 1
    known = cosines(vectors, prototypes)
    for concept, own in enumerate(found.keys):
        own = own[own != NOTHING]
        np.testing.assert_allclose(scores_of(own), known[concept][rows_of(own)], atol=1e-5)
    with pytest.raises(ValueError, match=r"was begun with approximate\.seed = "):
        score(pool, tmp_path / "near", k=50, prototypes=prototypes, engine="faiss", seed=1)
    assert files_of(tmp_path / "near") == ["request.json", "scores.safetensors"]


@pytest.mark.slow
def test_interrupted_index_goes_on_and_finds_the_same(tmp_path, monkeypatch):
    faiss = pytest.importorskip("faiss")
    vectors = make_vectors(600, width=16)
    vectors[7, 3] = np.inf
    pool, options = (
        open_pool(make_store(vectors)),
        {"k": 50, "prototypes": make_prototypes(width=16), "engine": "faiss"},
    )
    whole = score(pool, tmp_path / "whole", **options)
    monkeypatch.setattr(Scoring, "save_seconds", -1)
    original, written = faiss.write_index, []

    def write(index, writer):
        original(index, writer)
        written.append(index.ntotal)
        if len(written) == 3:
            raise Interrupted

    monkeypatch.setattr(faiss, "write_index", write)
    with pytest.raises(Interrupted):
        score(pool, tmp_path / "halted", **options)
    resumed = score(pool, tmp_path / "halted", **options)
    assert written[:4] == [4, 8, 12, 12]
    np.testing.assert_array_equal(resumed.keys, whole.keys)
    assert (resumed.recall, resumed.unusable) == (whole.recall, 1)


def test_damaged_index_or_too_small_a_pool_is_an_error(tmp_path, monkeypatch):
    faiss = pytest.importorskip("faiss")
    with pytest.raises(ValueError, match="needs 256 rows; use the exact engine"):
        score(open_pool(make_store(make_vectors())), tmp_path, engine="faiss")
    pool, folder = open_pool(make_store(make_vectors(300))), tmp_path / "other"
    monkeypatch.setattr(faiss, "write_index", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        score(pool, folder, engine="faiss")
    (folder / "index.faiss").write_bytes(b"half")
    with pytest.raises(ValueError, match="is damaged"):
        score(pool, folder, engine="faiss")


def test_leftover_states_of_a_kill_are_removed(tmp_path):
    pool = open_pool(make_store(make_vectors()))
    score(pool, tmp_path)
    for name in ("state-0-4.safetensors", ".state-0-4.safetensors.tmp", "index.faiss"):
        (tmp_path / name).write_bytes(b"")
    score(pool, tmp_path)
    assert files_of(tmp_path) == ["request.json", "scores.safetensors"]


@pytest.mark.gpu
def test_products_on_an_accelerator_find_the_same(tmp_path):
    pool = open_pool(make_store(make_vectors()))
    found = score(pool, tmp_path / "cuda", device="cuda")
    assert torch.cuda.is_available()
    np.testing.assert_array_equal(rows_of(found.keys), rows_of(score(pool, tmp_path / "cpu").keys))
