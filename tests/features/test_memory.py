"""What an extraction and an opened store hold in memory: a shard, and not the data."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from freezealign import FeatureStore, FreezeAlign, FrozenEncoder
from freezealign.encoders.callable import CallableEncoder

WIDTH, SHARD = 2048, 16


def vectors(n: int) -> Iterator[dict[str, np.ndarray]]:
    """Random vectors, made one by one."""
    rng = np.random.default_rng(0)
    return ({"audio": rng.random(WIDTH, np.float32)} for _ in range(n))


def extract(shards: int, path: Path) -> FeatureStore:
    model = FreezeAlign([FrozenEncoder(CallableEncoder(np.stack, "audio", WIDTH))], dim=4, device="cpu")
    options = {"batch_size": 8, "shard_size": SHARD, "show_progress_bar": False}
    return model.extract_features(vectors(shards * SHARD), path, **options)


@contextmanager
def peak() -> Iterator[list[int]]:
    """The most bytes that Python and NumPy held at once during the block, beyond what they held before."""
    found: list[int] = []
    tracemalloc.start()
    try:
        yield found
        found.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A store of a hundred shards."""
    path = tmp_path_factory.mktemp("many") / "store"
    extract(100, path)
    return path


def test_extraction_holds_no_more_for_more_shards(tmp_path):
    extract(1, tmp_path / "first")  # imports what is imported late
    held = {}
    for shards in (30, 90):
        with peak() as found:
            extract(shards, tmp_path / str(shards))
        held[shards] = found[0]
    one_shard = SHARD * WIDTH * 4
    assert held[90] - held[30] < 8 * one_shard  # 60 shards more were extracted


def test_opening_reads_no_embedding(many):
    with peak() as found:
        store = FeatureStore.open(many)
    assert len(store) == 1600
    assert found[0] < sum(file.stat().st_size for file in many.rglob("audio/token_embeddings/*.npy")) / 4


def test_reading_a_store_leaves_no_file_mapped(many):
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(many))

    if not Path("/proc/self/maps").exists():
        pytest.skip("needs Linux")
    store = FeatureStore.open(many)
    assert mapped() == 0
    for start in range(0, 1600, 100):
        store["audio"].load(np.arange(start, start + 100))
    assert mapped() == 0


def test_reading_a_batch_reads_a_batch(many):
    store = FeatureStore.open(many)
    store["audio"].load([0])
    rows = np.arange(5, 1600, 100)
    with peak() as found:
        store["audio"].load(rows)
    assert found[0] < 12 * len(rows) * WIDTH * 2  # float16


def test_selecting_copies_no_embedding(many):
    store = FeatureStore.open(many)
    with peak() as found:
        store.select(np.arange(0, 1600, 2)).select(slice(0, 700))
    assert found[0] < 100_000
