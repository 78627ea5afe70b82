"""Kills: whichever change of a file is the last, the same extraction goes on and ends as an undisturbed one does."""

from __future__ import annotations

from pathlib import Path

from jobs import extract, make_pairs
from kills import check_every_kill

from freezealign import FeatureStore


def test_extraction_goes_on_after_a_kill_at_any_call(tmp_path):
    pairs = make_pairs(3)
    check_every_kill(lambda folder: extract(folder, pairs, batch_size=2, shard_size=2), tmp_path, 40)


def test_saving_a_store_goes_on_after_a_kill_at_any_call(tmp_path):
    store = extract(None, make_pairs(4))

    def save(folder: Path) -> None:
        if not folder.exists():
            store.save(folder)
        FeatureStore.open(folder, verify=True)

    check_every_kill(save, tmp_path, 20)
