"""Interrupted extractions: what is finished stays, the rest is done later, and nobody can tell afterwards."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from jobs import PROCESSES, ended, extract, files_of, letters, make_model, make_pairs, pixels, start

from freezealign import FeatureStore, FreezeAlign, FrozenEncoder, Pooling, ProjectionHead

SHARDS = 9


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The store of an extraction that nothing interrupted; no test changes it."""
    path = tmp_path_factory.mktemp("whole") / "store"
    extract(path)
    return path


def finished(path: Path) -> list[int]:
    return sorted(int(file.stem) for file in (path / "shards").glob("*.json"))


def undo(path: Path, *shards: int) -> None:
    """Make a store unfinished: without these shards."""
    for shard in shards:
        (path / "shards" / f"{shard:05d}.json").unlink()


class Counted(list):
    """Pairs that remember which of them were read."""

    def __init__(self, pairs):
        super().__init__(pairs)
        self.read: list[int] = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


class Source:
    """Pairs that can be read from any position on, but not one by one."""

    def __init__(self, pairs):
        self.pairs, self.read = pairs, []

    def __len__(self):
        return len(self.pairs)

    def __iter__(self):
        return self.iter_from(0)

    def iter_from(self, start):
        for index in range(start, len(self.pairs)):
            self.read.append(index)
            yield self.pairs[index]


# Killed


def in_process(path: Path) -> None:
    extract(path, reuse=True)


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_store_after_kills_is_the_store_without(whole, tmp_path, seed):
    rng, path, kills = np.random.default_rng(seed), tmp_path / "store", 0
    while True:
        process = start(in_process, path)
        process.join(rng.uniform(0.01, 0.1 + 0.03 * kills) if kills < 10 else None)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills > 0
    assert files_of(path) == files_of(whole)


def die_at(path: Path, function: str, call: int) -> None:
    """Extract with an ``os`` function that kills this process at a certain call, before it does anything."""
    import os

    real, calls = getattr(os, function), []

    def deadly(*args, **options):
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    setattr(os, function, deadly)
    extract(path, reuse=True)


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("call", [1, 12, 40])
def test_kill_in_the_middle_of_writing_leaves_no_trace(whole, tmp_path, function, call):
    process = start(die_at, tmp_path / "store", function, call)
    assert ended(process) == -signal.SIGKILL
    extract(tmp_path / "store")
    assert files_of(tmp_path / "store") == files_of(whole)


def hold(path: Path, ready) -> None:
    def slow():
        yield from make_pairs()[:20]
        ready.set()
        time.sleep(1000)

    extract(path, slow())


@pytest.fixture
def holder(tmp_path):
    """A process that is writing to ``tmp_path / "store"`` and does not get on."""
    ready = PROCESSES.Event()
    process = start(hold, tmp_path / "store", ready)
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_second_writer_is_refused(holder, tmp_path):
    with pytest.raises(RuntimeError, match=rf"another process is writing to {re.escape(str(tmp_path))}.*wait.*stop"):
        extract(tmp_path / "store")
    assert holder.is_alive()


def test_lock_of_a_killed_process_is_gone(holder, whole, tmp_path):
    holder.kill()
    holder.join()
    extract(tmp_path / "store")
    assert files_of(tmp_path / "store") == files_of(whole)


def test_folder_with_nothing_but_the_lock_of_a_killed_process_is_used(whole, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".lock").touch()
    (tmp_path / "store" / ".manifest.json.tmp").write_text("{")
    extract(tmp_path / "store")
    assert files_of(tmp_path / "store") == files_of(whole)


# Interrupted, or failed


def test_ctrl_c_keeps_finished_shards(whole, tmp_path):
    before, calls = signal.signal(signal.SIGINT, signal.default_int_handler), []  # ignored in the background

    def interrupted(items):
        calls.append(len(items))
        if len(calls) == 12:
            signal.raise_signal(signal.SIGINT)
        return pixels(items)

    interrupted.__qualname__, interrupted.__module__ = pixels.__qualname__, pixels.__module__
    model = FreezeAlign([FrozenEncoder(interrupted, "image"), FrozenEncoder(letters, "text")], dim=8, device="cpu")
    calls.clear()  # of finding out the width
    try:
        with pytest.raises(KeyboardInterrupt):
            extract(tmp_path / "store", model=model)
    finally:
        signal.signal(signal.SIGINT, before)
    assert finished(tmp_path / "store") == [0, 1, 2]  # 3 batches each
    extract(tmp_path / "store")
    assert files_of(tmp_path / "store") == files_of(whole)


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_error_of_the_data_keeps_every_shard_before_it(whole, tmp_path, shards):
    def failing():
        yield from make_pairs()[: 7 * shards]
        raise ConnectionError("the cable is out")

    with pytest.raises(RuntimeError, match=r"the data ended at pair \d+: ConnectionError: the cable is out"):
        extract(tmp_path / "store", failing())
    assert finished(tmp_path / "store") == list(range(shards))
    assert len(FeatureStore.open(tmp_path / "store", partial=True)) == 7 * shards - (7 * shards // 11)
    extract(tmp_path / "store")
    assert files_of(tmp_path / "store") == files_of(whole)


def test_error_of_the_encoder_keeps_finished_shards(tmp_path):
    calls = []

    def failing(items):
        calls.append(len(items))
        if len(calls) == 12:
            raise RuntimeError("out of memory")
        return pixels(items)

    model = FreezeAlign([FrozenEncoder(failing, "image"), FrozenEncoder(letters, "text")], dim=8, device="cpu")
    calls.clear()
    with pytest.raises(RuntimeError, match="out of memory"):
        extract(tmp_path / "store", model=model)
    assert finished(tmp_path / "store") == [0, 1, 2]


# What is done is not done again


def test_finished_shards_are_never_written_again(whole, tmp_path):
    path = tmp_path / "store"
    extract(path)
    undo(path, 7, 8)
    times = {file: file.stat().st_mtime_ns for file in path.rglob("0000[0-6].*")}
    assert len(times) == 7 * 11  # ten arrays and one JSON file a shard
    extract(path)
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert files_of(path) == files_of(whole)


@pytest.fixture(params=[Counted, Source])
def in_files(request, tmp_path):
    """Data that lies in files, by which it is known without being read."""
    (tmp_path / "data.tar").write_bytes(b"pairs")
    data = request.param(make_pairs())
    data.paths = [tmp_path / "data.tar"]
    return data


def test_pairs_of_finished_shards_are_not_read_again_where_their_files_are_as_they_were(whole, tmp_path, in_files):
    path = tmp_path / "store"
    extract(path, in_files)
    undo(path, 7, 8)
    in_files.read.clear()
    extract(path, in_files)
    assert set(in_files.read) - {0} == set(range(49, 60))  # the first is looked at to tell pairs from batches
    assert files_of(path) == files_of(whole)


def test_pairs_between_missing_shards_are_not_read_again_where_their_files_are_as_they_were(tmp_path, in_files):
    path = tmp_path / "store"
    extract(path, in_files)
    undo(path, 1, 2, 5)
    in_files.read.clear()
    extract(path, in_files)
    assert set(range(7, 21)) | set(range(35, 42)) <= set(in_files.read)
    assert set(in_files.read) <= {0, *range(7, 22), *range(35, 43)}


def swapped(pairs):
    pairs[10], pairs[11] = pairs[11], pairs[10]


def edited(pairs):
    pairs[3]["text"] = "another caption"


CHANGES = {
    "put in another order": (swapped, 10),
    "a caption edited": (edited, 3),
    "a pair put in": (lambda pairs: pairs.insert(20, dict(pairs[20])), 21),
    "a pair taken out": (lambda pairs: pairs.pop(8), 8),
    "cut short": (lambda pairs: pairs.__delitem__(slice(20, None)), 20),
}


@pytest.mark.parametrize("kind", [list, Source, iter])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_is_refused_naming_the_first_pair_that_differs(tmp_path, change, kind):
    path, pairs = tmp_path / "store", [dict(pair) for pair in make_pairs()]
    extract(path, kind(pairs))
    undo(path, 8)
    before = files_of(path)
    make, first = CHANGES[change]
    make(pairs)
    with pytest.raises(ValueError, match=rf"data has changed .* from pair {first} on"):
        extract(path, kind(pairs))
    assert files_of(path) == before


def test_complete_store_of_the_same_data_is_opened(whole, tmp_path):
    extract(tmp_path / "store")
    extract(tmp_path / "store")
    assert files_of(tmp_path / "store") == files_of(whole)


@pytest.mark.parametrize("missing", [[0], [8], [3, 5], [0, 1, 8], list(range(SHARDS))])
def test_any_missing_shards_are_done_and_no_other(whole, tmp_path, missing):
    path, encoded = tmp_path / "store", []
    extract(path)
    undo(path, *missing)

    def counted(items):
        encoded.extend(items)
        return letters(items)

    counted.__qualname__, counted.__module__ = letters.__qualname__, letters.__module__
    model = FreezeAlign([FrozenEncoder(pixels, "image"), FrozenEncoder(counted, "text")], dim=8, device="cpu")
    encoded.clear()
    extract(path, iter(make_pairs()), model=model)
    pairs = make_pairs()
    wanted = [pairs[i] for shard in missing for i in range(7 * shard, min(7 * shard + 7, 60))]
    assert encoded == [text for pair in wanted if pair["image"] is not None for text in pair["text"]]
    assert files_of(path) == files_of(whole)


def test_a_stream_is_taken_up_where_it_stopped(whole, tmp_path):
    path = tmp_path / "store"
    extract(path)
    undo(path, 4, 5, 6, 7, 8)
    extract(path, (pair for pair in make_pairs()))
    assert files_of(path) == files_of(whole)


# Taken up in another way


def other_letters(items):
    return letters(items)


def pooling_model(mode: str = "mean") -> FreezeAlign:
    model = make_model()
    towers = {
        name: [encoder, Pooling(mode), ProjectionHead(encoder.get_embedding_dimension(), 8, "linear")]
        for name, encoder in model.encoders.items()
    }
    return FreezeAlign(towers, device="cpu")


@pytest.mark.parametrize(
    ("options", "begun", "now"),
    [
        ({"batch_size": 4}, "batch_size = 3", "4"),
        ({"shard_size": 8}, "shard_size = 7", "8"),
        ({"dtype": "int8"}, "dtype = float16", "int8"),
        ({"views": 2}, "views = 1", "2"),
    ],
)
def test_another_option_is_refused_naming_both(tmp_path, options, begun, now):
    extract(tmp_path / "store")
    undo(tmp_path / "store", 8)
    before = files_of(tmp_path / "store")
    with pytest.raises(ValueError, match=rf"begun with {begun}.*this run has {now}\b"):
        extract(tmp_path / "store", **options)
    assert files_of(tmp_path / "store") == before


def test_another_level_is_refused_naming_both(tmp_path):
    extract(tmp_path / "store", model=pooling_model(), level="tokens")
    undo(tmp_path / "store", 8)
    with pytest.raises(ValueError, match=r"begun with level = tokens.*this run has pooled"):
        extract(tmp_path / "store", model=pooling_model())


def test_another_encoder_is_refused_naming_both(tmp_path):
    extract(tmp_path / "store")
    undo(tmp_path / "store", 8)
    model = FreezeAlign([FrozenEncoder(pixels, "image"), FrozenEncoder(other_letters, "text")], dim=8, device="cpu")
    with pytest.raises(ValueError, match="begun with modalities") as error:
        extract(tmp_path / "store", model=model)
    for encoder in (make_model().encoders["text"], model.encoders["text"]):
        assert encoder.fingerprint in str(error.value)


def test_another_pooling_is_refused_naming_both(tmp_path):
    extract(tmp_path / "store", model=pooling_model("mean"))
    undo(tmp_path / "store", 8)
    with pytest.raises(ValueError, match=r"begun with modalities.image.pooling = mean, this run has max"):
        extract(tmp_path / "store", model=pooling_model("max"))


def test_an_unfinished_store_opens_only_on_request(tmp_path):
    extract(tmp_path / "store")
    undo(tmp_path / "store", 3, 8)
    with pytest.raises(ValueError, match=r"not complete: 7 shards.*partial=True"):
        FeatureStore.open(tmp_path / "store")
    ids = FeatureStore.open(tmp_path / "store", partial=True).ids
    assert ids == [f"picture-{i}" for i in range(56) if i % 11 != 10 and i // 7 != 3]
