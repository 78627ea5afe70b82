"""Kills: whichever change of a file is the last, the same training goes on, and ends where an undisturbed one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kills import check_every_kill
from runs import QUIET, Score, make_model, make_pairs, trained

FIT = {"schedule": "paper", "epochs": 1, "batch_size": 6, "keep_best": True, "evaluate_every": 2, **QUIET}


def test_training_goes_on_after_a_kill_at_any_call(tmp_path):
    found = []

    def run(folder: Path) -> None:
        model = make_model()
        history = model.fit(make_pairs(12), Score(), **FIT, output_dir=folder, keep_checkpoints=1)
        found.append((history.losses, history.evaluations, trained(model)))

    # the state of torch's generator does not matter any more once a run has ended
    check_every_kill(run, tmp_path, 20, but="generators-0.safetensors")
    losses, evaluations, weights = found[0]
    for other in found[1:]:
        assert other[:2] == (losses, evaluations)
        assert all(torch.equal(weights[name], value) for name, value in other[2].items())


def test_a_checkpoint_is_left_at_every_moment(tmp_path):
    """With one kept, too, once there has been one: what takes its place is whole before it goes."""
    from kills import Deadly, Killed

    from freezealign.training.checkpoints import latest, recover

    seen, last = False, 0
    while True:
        folder = tmp_path / str(last)
        with pytest.MonkeyPatch.context() as patch:
            Deadly(patch, last)
            try:
                make_model().fit(make_pairs(12), Score(), **FIT, output_dir=folder, keep_checkpoints=1)
                break
            except Killed:
                pass
        recover(folder / "checkpoints")
        there = latest(folder / "checkpoints") is not None
        assert there or not seen, f"no checkpoint is left after a kill at call {last}"
        seen, last = there, last + 1
    assert seen


def test_trained_weights_are_replaced_only_with_a_word_and_kept_on_request(callable_model, images, texts, caplog):
    pairs = list(zip(images, texts))
    callable_model.fit(pairs, **QUIET)
    first = trained(callable_model)
    with caplog.at_level("WARNING", logger="freezealign"):
        kept = callable_model.fit(pairs, init="keep", epochs=0, **QUIET)
    assert not caplog.records and all(
        torch.equal(first[name], value) for name, value in trained(callable_model).items()
    )
    assert "init='keep' was asked for" in kept.plan
    again = callable_model.fit(pairs, **QUIET)
    assert "init='keep'" in caplog.text and "replaces the weights" in again.plan
