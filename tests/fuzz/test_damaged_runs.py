"""Interrupted training: a damaged checkpoint is refused, or passed over, or the run ends as if nothing had happened."""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from judge import driver, judge, require_equal
from PIL import Image
from spoil import Edit, Link, damaged_folder, in_short, read_folder, write_folder
from valid import TEXTS

from freezealign import FreezeAlign

PAIRS = [(Image.new("RGB", (4, 4), (40 * n, 99, 9)), text) for n, text in enumerate(TEXTS)]


class Interrupted(Exception):
    """The run was stopped."""


def train(folder: Path, steps: int | None = None) -> dict[str, np.ndarray]:
    """Train in a folder, or go on there, and return all that was trained; stop after ``steps``."""
    one = FreezeAlign(["fuzz-pixels", "fuzz-letters"], recipe="pooled", dim=4, seed=0, device="cpu")

    def stop(*_: Any, **__: Any) -> dict[str, float]:
        nonlocal steps
        steps = None if steps is None else steps - 1
        if steps == 0:
            raise Interrupted
        return {"score": 1.0}

    options = {"schedule": "paper", "epochs": 4, "batch_size": 3, "save_every": 2, "evaluate_every": 2}
    with contextlib.suppress(Interrupted):
        one.fit(PAIRS, stop, output_dir=str(folder), show_progress_bar=False, **options)
    return {name: value.detach().numpy().copy() for name, value in one.state_dict().items()}


@cache
def whole() -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Return the files of a run that was stopped halfway, and what it would have ended with."""
    with TemporaryDirectory() as folder:
        train(Path(folder), steps=3)
        return read_folder(Path(folder)), train(Path(folder))


@st.composite
def damaged_runs(draw: st.DrawFn) -> dict[str, Any]:
    """Return what lies in the folder of a run instead."""
    return draw(damaged_folder(whole()[0]))


@driver(4)
@given(damaged_runs())
@example({"checkpoints/step-00000004/state.json": Edit(b'"step"', b'"x"')})
@example({"checkpoints/step-00000004/state.json": Link("/dev/zero")})
def test_a_run_goes_on_from_a_damaged_checkpoint_as_it_was_or_not_at_all(damage):
    files, right = whole()

    def run(folder):
        require_equal(train(write_folder(folder, files, damage)), right, "the model")

    judge("runs", in_short(files, damage), run)
