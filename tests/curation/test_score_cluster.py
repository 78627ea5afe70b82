"""The same pass on a Ray cluster of one machine: the same rows, whichever worker dies on the way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from made import make_prototypes, make_vectors

from freezealign.curation import Pool, Scoring, score_pool
from freezealign.curation.top_k import rows_of

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")
ROWS = 5000


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def make_pool(fatal: Path | None = None) -> Pool:
    """A pool whose class travels by value; reading row 3,000 ends its process while ``fatal`` exists."""

    class Fatal:
        def __init__(self, rows, fatal):
            self.rows, self.fatal = rows, fatal

        def __len__(self):
            return len(self.rows)

        def take(self, index):
            if self.fatal is not None and 3000 in index and len(index) > 100 and self.fatal.exists():
                self.fatal.unlink()
                os._exit(1)
            return self.rows[index]

    return Pool("made", Fatal(make_vectors(ROWS), fatal), 6)


def rows(folder: Path, engine: str, pool: Pool | None = None) -> np.ndarray:
    scoring = Scoring([pool or make_pool()], [make_prototypes(7)], 100)
    return rows_of(score_pool(scoring, folder, engine=engine, show_progress_bar=False).keys)


def test_cluster_finds_what_one_machine_finds(tmp_path):
    np.testing.assert_array_equal(rows(tmp_path / "ray", "ray"), rows(tmp_path / "local", "local"))
    assert sorted(path.name for path in (tmp_path / "ray").iterdir()) == ["request.json", "scores.safetensors"]


def test_range_of_a_worker_that_died_is_done_again(tmp_path):
    (tmp_path / "fatal").touch()
    found = rows(tmp_path / "ray", "ray", make_pool(tmp_path / "fatal"))
    assert not (tmp_path / "fatal").exists()
    np.testing.assert_array_equal(found, rows(tmp_path / "local", "local"))
