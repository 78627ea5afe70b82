"""The paper's toy experiment: does alignment before training tell the loss after it? And where does it not?"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from freezealign.alignment.toy_report import ToyStudy, describe, draw
from freezealign.alignment.toy_runs import COLUMNS, ToyRun, ToySettings, do_run, plan_runs
from freezealign.files import claim, exclusive, write_json_atomically

__all__ = ["ToySettings", "ToyStudy", "describe", "draw", "run_toy"]

PROTOCOL = 1
"""Of what a run does with its settings; runs of another protocol are not continued."""


def run_toy(
    output: str | os.PathLike[str], settings: ToySettings | None = None, show_progress_bar: bool = True
) -> ToyStudy:
    """Do the study, or what is left of it, and write ``toy.csv``, ``toy.json`` and ``toy.png`` into a folder.

    A run that is finished is in ``toy.csv`` at once, and is not done again: a study that was stopped goes on where it
    was, and the files are those of a study in one go.

    Args:
        output: The folder, which is made if need be.
        settings: What to do; the defaults take a minute, :meth:`ToySettings.small` seconds.
        show_progress_bar: Show progress if it takes longer than a second.

    Raises:
        ValueError: If the folder holds a study with other settings, or a ``toy.csv`` of something else.
        FileExistsError: If it holds something else.
    """
    settings, folder = settings or ToySettings(), Path(output)
    identity = {"protocol": PROTOCOL, "settings": asdict(settings)}
    with exclusive(folder):
        claim(folder / "toy.json", identity, "toy study")
        study = ToyStudy(settings, _do_runs(folder / "toy.csv", settings, not show_progress_bar))
        correlations = {
            part: {x: {y: asdict(found) for y, found in ys.items()} for x, ys in xs.items()}
            for part, xs in study.correlations.items()
        }
        summary = {"runs": len(study.runs), "correlations": correlations, "findings": describe(study)}
        write_json_atomically(folder / "toy.json", identity | summary)
        draw(study).savefig(folder / "toy.png", dpi=110)
    return study


def _do_runs(table: Path, settings: ToySettings, hidden: bool) -> list[ToyRun]:
    """Do the runs that the table has not yet, and return all."""
    plans, threads = plan_runs(settings), torch.get_num_threads()
    runs = _finished(table, plans)
    torch.set_num_threads(1)  # several would only wait for one another in matrices as small as these
    try:
        with table.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not file.tell():
                writer.writerow(COLUMNS)
            for plan in tqdm(plans[len(runs) :], "runs", len(plans), initial=len(runs), delay=1, disable=hidden):
                runs.append(do_run(settings, plan))
                writer.writerow(asdict(runs[-1]).values())
                file.flush()
    finally:
        torch.set_num_threads(threads)
    return runs


def _finished(table: Path, plans: Sequence[dict[str, Any]]) -> list[ToyRun]:
    """Return the runs in a table, which afterwards has whole rows only."""
    content = table.read_bytes() if table.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(table, len(whole))
    header, *rows = list(csv.reader(whole.decode().splitlines())) or [COLUMNS]
    planned = [[str(plan[name]) for name in COLUMNS[:3]] for plan in plans[: len(rows)]]
    if header != COLUMNS or [row[:3] for row in rows] != planned:
        raise ValueError(f"{table} is not of this study: use another folder.")
    return [ToyRun(int(run), arm, int(seed), int(dim), *map(float, numbers)) for run, arm, seed, dim, *numbers in rows]
