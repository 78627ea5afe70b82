"""The same extraction on a Ray cluster of one machine: the same bytes, whatever dies on the way."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from jobs import files_of, make_pairs

from freezealign import FreezeAlign, FrozenEncoder

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def make_model(fatal: Path | None = None) -> FreezeAlign:
    """A model of plain functions that travel by value; encoding an image ends its process while ``fatal`` exists."""

    def pixels(items):
        if fatal is not None and fatal.exists():
            fatal.unlink()
            os._exit(1)
        return np.stack([np.asarray(item.resize((4, 4)), np.float32).reshape(-1) / 255 for item in items])

    def letters(items):
        return [np.eye(32, dtype=np.float32)[[ord(letter) % 32 for letter in item]] for item in items]

    return FreezeAlign([FrozenEncoder(pixels, "image"), FrozenEncoder(letters, "text")], dim=8, device="cpu")


def extract(path, data=None, model=None, **options):
    options = {"batch_size": 3, "shard_size": 7, "show_progress_bar": False, **options}
    return (model or make_model()).extract_features(make_pairs() if data is None else data, path, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "store"
    extract(path, engine="local")
    return path


def test_store_of_a_cluster_is_the_local_one(whole, tmp_path):
    store = extract(tmp_path / "store", engine="ray")
    assert len(store) == 55
    assert files_of(tmp_path / "store") == files_of(whole)


def test_shard_of_a_worker_that_died_is_done_again(whole, tmp_path):
    model = make_model(tmp_path / "fatal")
    (tmp_path / "fatal").touch()
    extract(tmp_path / "store", model=model, engine="ray")
    assert not (tmp_path / "fatal").exists()
    assert files_of(tmp_path / "store") == files_of(whole)


def test_cluster_takes_up_what_was_begun_locally(whole, tmp_path):
    extract(tmp_path / "store")
    for shard in (1, 4, 8):
        (tmp_path / "store" / "shards" / f"{shard:05d}.json").unlink()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "store").rglob("0000[0235]*")}
    extract(tmp_path / "store", engine="ray")
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert files_of(tmp_path / "store") == files_of(whole)


def test_stream_is_refused_before_any_work(tmp_path):
    def never():
        time.sleep(0)
        pytest.fail("the data was read")
        yield

    with pytest.raises(ValueError, match=r"engine='ray' needs data of known length.*not generator"):
        extract(tmp_path / "store", never(), engine="ray")


def test_memory_is_refused():
    with pytest.raises(ValueError, match=r"engine='ray' needs a path"):
        extract(None, engine="ray")


def test_unknown_engine_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown engine 'spark'.*local.*ray"):
        extract(tmp_path / "store", engine="spark")
