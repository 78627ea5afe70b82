"""run_toy does the study and goes on where it was stopped; ToyStudy is what it found."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from freezealign.alignment.toy.correlation import rank_correlation
from freezealign.alignment.toy.findings import describe
from freezealign.alignment.toy.plot import draw
from freezealign.alignment.toy.settings import ToySettings
from freezealign.alignment.toy.training import COLUMNS, MEASURES, OUTCOMES, ToyRun, do_run, plan_runs
from freezealign.files import read_object, to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOL = 1
"""Of what a run does with its settings; runs of another protocol are not continued."""


class ToyStudy:
    """What :func:`run_toy` found.

    Args:
        settings: Of the study.
        runs: All of its runs.

    Attributes:
        correlations: For each part of the study, measure and outcome, the rank correlation. The parts are the arms,
            ``all`` of them together, and ``within_noise``, the arm ``noise`` with runs compared only to those of the
            same level of noise.
        findings: What was found, in words that follow from the numbers, also where the claim fails.
    """

    def __init__(self, settings: ToySettings, runs: Sequence[ToyRun]) -> None:
        self.settings, self.runs = settings, list(runs)
        parts = {arm: self.arm(arm) for arm in ("noise", "width", "stretch")}
        parts |= {"within_noise": parts["noise"], "all": self.runs}
        self.correlations = {part: self._correlate(runs, part == "within_noise") for part, runs in parts.items()}
        self.findings = describe(self)

    def arm(self, name: str) -> list[ToyRun]:
        """Return the runs of one arm."""
        return [run for run in self.runs if run.arm == name]

    def _correlate(self, runs: Sequence[ToyRun], within: bool) -> dict[str, Any]:
        groups = [run.first_noise for run in runs] if within else None
        columns = {name: [getattr(run, name) for run in runs] for name in (*MEASURES, *OUTCOMES)}
        options = groups, self.settings.resamples, self.settings.seed
        return {x: {y: rank_correlation(columns[x], columns[y], *options) for y in OUTCOMES} for x in MEASURES}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``toy.json`` and ``toy.png`` beside the ``toy.csv`` of :func:`run_toy`."""
        correlations = {
            part: {x: {y: asdict(found) for y, found in ys.items()} for x, ys in xs.items()}
            for part, xs in self.correlations.items()
        }
        summary = {"runs": len(self.runs), "correlations": correlations, "findings": self.findings}
        _write(Path(folder) / "toy.json", _identity(self.settings) | summary)
        self.plot(Path(folder) / "toy.png")

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw loss against CKA in the three arms, save it at ``path`` if there is one, and return the figure."""
        figure = draw(self)
        if path is not None:
            figure.savefig(path, dpi=110)
        return figure

    def __repr__(self) -> str:
        found = self.correlations["noise"]["cka"]["loss"]
        return f"ToyStudy({len(self.runs)} runs, CKA and loss across noise: {found})"


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
    """
    settings, folder = settings or ToySettings(), Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    plans, threads = plan_runs(settings), torch.get_num_threads()
    runs = _finished(folder, settings, plans)
    torch.set_num_threads(1)  # several would only wait for one another in matrices as small as these
    try:
        with (folder / "toy.csv").open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not file.tell():
                writer.writerow(COLUMNS)
            left, hidden = plans[len(runs) :], not show_progress_bar
            for plan in tqdm(left, "runs", len(plans), initial=len(runs), delay=1, disable=hidden):
                runs.append(do_run(settings, plan))
                writer.writerow(asdict(runs[-1]).values())
                file.flush()
    finally:
        torch.set_num_threads(threads)
    study = ToyStudy(settings, runs)
    study.save(folder)
    return study


def _finished(folder: Path, settings: ToySettings, plans: Sequence[dict[str, Any]]) -> list[ToyRun]:
    """Return the finished runs in a folder, which afterwards holds their settings, and a CSV of whole rows only."""
    table, description, wanted = folder / "toy.csv", folder / "toy.json", _identity(settings)
    if not table.exists() and not description.exists():
        _write(description, wanted)
    known = read_object(description, wanted)
    before, now = ({"protocol": found["protocol"], **found["settings"]} for found in (known, wanted))
    other = [f"{name} {before.get(name)} instead of {now[name]}" for name in now if before.get(name) != now[name]]
    if other:
        raise ValueError(f"{folder} holds a study with other settings ({'; '.join(other)}): use another folder.")
    content = table.read_bytes() if table.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(table, len(whole))
    header, *rows = list(csv.reader(whole.decode().splitlines())) or [COLUMNS]
    planned = [[str(plan[name]) for name in COLUMNS[:3]] for plan in plans[: len(rows)]]
    if header != COLUMNS or [row[:3] for row in rows] != planned:
        raise ValueError(f"{table} is not of this study: use another folder.")
    return [ToyRun(int(run), arm, int(seed), int(dim), *map(float, numbers)) for run, arm, seed, dim, *numbers in rows]


def _identity(settings: ToySettings) -> dict[str, Any]:
    """Return what makes runs those of this study, as JSON gives it back."""
    return dict(json.loads(to_json({"protocol": PROTOCOL, "settings": asdict(settings)})))


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a file of which there is never a half."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(to_json(content))
    partial.replace(path)
