"""The paper's toy experiment: does alignment before training tell the loss after it? And where does it not?"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from freezealign.alignment.neighbours import K
from freezealign.alignment.toy_runs import MEASURED, PLANNED, ToyRun, ToySettings, do_run, plan_runs
from freezealign.figures import SCALE, new_figure, save_figure
from freezealign.files import claim, exclusive, write_json_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ToySettings", "ToyStudy", "describe", "draw", "run_toy"]

PROTOCOL = 1
"""Of what a run does with its settings; runs of another protocol are not continued."""
MEASURES = {"cka": "unbiased CKA", "cka_biased": "biased CKA", "mutual_knn": f"mutual {K}-NN"}
OUTCOMES = ("loss", "held_out_loss", "recall_at_1")
PARTS = {
    "noise": "across noise",
    "within_noise": "within a level of noise",
    "width": "across widths",
    "stretch": "across stretches",
}
"""Of the study, and what to call them; ``within_noise`` compares runs at one level of noise only."""


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
        save_figure(draw(study), folder / "toy.png", dpi=110)
    return study


def _do_runs(table: Path, settings: ToySettings, hidden: bool) -> list[ToyRun]:
    """Do the runs that the table has not yet, and return all."""
    plans, threads = plan_runs(settings), torch.get_num_threads()
    runs = _finished(table, plans)
    torch.set_num_threads(1)  # several would only wait for one another in matrices as small as these
    try:
        with table.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*PLANNED, *MEASURED], lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            for plan in tqdm(plans[len(runs) :], "runs", len(plans), initial=len(runs), delay=1, disable=hidden):
                runs.append(do_run(settings, plan))
                writer.writerow(runs[-1])
                file.flush()
    finally:
        torch.set_num_threads(threads)
    return runs


def _finished(table: Path, plans: Sequence[ToyRun]) -> list[ToyRun]:
    """Return the runs in a table, which afterwards has whole rows only."""
    content = table.read_bytes() if table.exists() else b""
    whole, runs = content[: content.rfind(b"\n") + 1], list[ToyRun]()
    try:
        reader = csv.DictReader(whole.decode().splitlines(), strict=True)
        rows = list(reader)
        if whole and reader.fieldnames != [*PLANNED, *MEASURED]:
            raise ValueError("its columns are others")
        for row, plan in zip_longest(rows, plans[: len(rows)]):
            runs.append(plan | {name: float(row.pop(name)) for name in MEASURED})
            if row != {name: str(value) for name, value in plan.items()}:
                raise ValueError(f"row {len(runs)} is of another run")
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{table} is not of this study ({error}): use another folder.") from None
    if len(whole) < len(content):
        os.truncate(table, len(whole))
    return runs


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of a measure with an outcome, over runs.

    The value is NaN where one of both does not vary. The 95% interval, from a percentile bootstrap over ``n`` runs,
    cannot leave a perfect correlation, and says nothing about spaces that are made in another way.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def rank_correlation(
    x: Sequence[float], y: Sequence[float], groups: Sequence[Any] | None = None, resamples: int = 1000, seed: int = 0
) -> Correlation:
    """Return Spearman's rank correlation with its percentile bootstrap interval over runs.

    With ``groups``, what group each run is in, runs are ranked, and resampled, within their group only, so that what
    differs between groups counts for nothing.
    """
    labels = np.zeros(len(x)) if groups is None else np.asarray(groups)
    values = np.array([x, y], dtype=np.float64)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rng = np.random.default_rng(seed)
    spread = _correlations(values, [rng.choice(group, (resamples, len(group))) for group in members])
    spread = spread[np.isfinite(spread)]
    low, high = np.quantile(spread, [0.025, 0.975]).tolist() if len(spread) else (np.nan, np.nan)
    return Correlation(float(_correlations(values, [group[None] for group in members])[0]), low, high, len(x))


def _correlations(values: np.ndarray, drawn: Sequence[np.ndarray]) -> np.ndarray:
    """Return the correlation (B,) of values (2, n) ranked within groups, each group's members drawn as (B, size)."""
    from scipy.stats import rankdata

    ranks = [rankdata(values[:, group], axis=2) - (group.shape[1] + 1) / 2 for group in drawn]
    first, second = np.concatenate(ranks, axis=2)
    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    return np.divide((first * second).sum(1), scale, out=np.full(len(scale), np.nan), where=scale > 0)


@dataclass(frozen=True)
class ToyStudy:
    """What :func:`run_toy` found: the settings of the study, and all of its runs."""

    settings: ToySettings
    runs: Sequence[ToyRun]

    def arm(self, name: str) -> list[ToyRun]:
        """Return the runs of one arm."""
        return [run for run in self.runs if run["arm"] == name]

    @cached_property
    def correlations(self) -> dict[str, dict[str, dict[str, Correlation]]]:
        """For each of :data:`PARTS` and ``all`` runs together, each measure and outcome, the rank correlation."""
        found: dict[str, dict[str, dict[str, Correlation]]] = {}
        for part in ("noise", "width", "stretch", "within_noise", "all"):
            runs = self.runs if part == "all" else self.arm(part.removeprefix("within_"))
            groups = [run["first_noise"] for run in runs] if part == "within_noise" else None
            columns = {name: [run[name] for run in runs] for name in (*MEASURES, *OUTCOMES)}
            options = groups, self.settings.resamples, self.settings.seed
            found[part] = {
                x: {y: rank_correlation(columns[x], columns[y], *options) for y in OUTCOMES} for x in MEASURES
            }
        return found

    def __repr__(self) -> str:
        found = self.correlations["noise"]["cka"]["loss"]
        return f"ToyStudy({len(self.runs)} runs, CKA and loss across noise: {found})"


def describe(study: ToyStudy) -> str:
    """Return a paragraph on where the claim holds, where it fails, and where the runs cannot tell."""
    s, equal = study.settings, float(np.log(study.settings.held_out))
    runs = {arm: f"{len(study.arm(arm))} runs" for arm in ("noise", "width", "stretch")}
    width = study.correlations["width"]["cka_biased"]
    overfit = width["loss"].high < 0 < width["held_out_loss"].low
    worse = sum(run["held_out_loss"] > equal for run in study.runs)

    def verdict(part: str, measure: str) -> str:
        """Return whether the claim holds in a part of the study, and how both losses go with a measure there."""
        loss, held_out = (study.correlations[part][measure][outcome] for outcome in ("loss", "held_out_loss"))
        holds = "holds" if held_out.high < 0 else "is reversed" if held_out.low > 0 else "is not seen"
        trends = f"training loss {_trend(loss)} and held-out loss {_trend(held_out)}"
        return f"the claim {holds}: as {MEASURES[measure]} rises, {trends}"

    def course(arm: str, level: str, column: str) -> str:
        """Return the mean at the lowest level of an arm and at the highest."""
        levels, values = (np.array([run[name] for run in study.arm(arm)]) for name in (level, column))
        return f"from {values[levels == levels.min()].mean():.2f} to {values[levels == levels.max()].mean():.2f}"

    unclear = []
    for measure, name in MEASURES.items():
        found = {place: study.correlations[part][measure]["held_out_loss"] for part, place in PARTS.items()}
        if places := [place for place, correlation in found.items() if correlation.low <= 0 <= correlation.high]:
            unclear.append(f"{name} {' and '.join(places)}")
    return " ".join(
        [
            "The claim: the higher the alignment before training, the lower the loss after it.",
            f"Across noise of {min(s.noises):g} to {max(s.noises):g} and random maps ({runs['noise']}) "
            f"{verdict('noise', 'cka')}.",
            f"Among runs of one level of noise {verdict('within_noise', 'cka')}.",
            f"Across widths of {min(s.widths)} to {max(s.widths)} at {s.train} training pairs ({runs['width']}), where "
            f"biased CKA goes {course('width', 'dim', 'cka_biased')}, {verdict('width', 'cka_biased')}"
            f"{': this rise in biased CKA goes with over-fitting' if overfit else ''}.",
            f"There unbiased CKA goes {course('width', 'dim', 'cka')}, and {verdict('width', 'cka')}.",
            f"Across invertible linear stretches of {min(s.stretches):g} to {max(s.stretches):g} ({runs['stretch']}), "
            f"where unbiased CKA goes {course('stretch', 'stretch', 'cka')} and held-out loss "
            f"{course('stretch', 'stretch', 'held_out_loss')}, {verdict('stretch', 'cka')}.",
            f"Intervals with held-out loss that include 0: {'; '.join(unclear) or 'none'}.",
            f"Held-out loss is above log({s.held_out}) = {equal:.2f}, that of equal logits, in {worse} of all "
            f"{len(study.runs)} runs.",
        ]
    )


def _trend(found: Correlation) -> str:
    if np.isnan(found.value):
        return "does not vary"
    if found.low <= 0 <= found.high:
        return f"has no clear trend (rho {found})"
    return f"{'falls' if found.value < 0 else 'rises'} (rho {found})"


def draw(study: ToyStudy) -> Figure:
    """Draw loss against CKA, a panel an arm: training loss as discs, held-out loss as rings."""
    s = study.settings
    figure = new_figure(13, 6)
    noise, width, stretch = figure.subplots(1, 3, sharex=True, sharey=True)
    at = f"noise {s.fixed_noise:g}"
    _panel(noise, study, "noise", "cka", ("first_noise", "noise level"), f"Noise and maps vary, d = {s.dim}")
    _panel(width, study, "width", "cka_biased", ("dim", "width d of both spaces"), f"Only the width d varies, {at}")
    factor = ("stretch", "largest / smallest factor")
    _panel(stretch, study, "stretch", "cka", factor, f"Invertible linear stretch, d = {s.dim}, {at}")
    unbiased = [run["cka"] for run in study.arm("width")]
    width.axvspan(min(unbiased), max(unbiased), color="0.88", zorder=0)
    width.text(min(unbiased) - 0.02, 0.03, "unbiased CKA\nof these runs", ha="right", color="0.4", fontsize=9)
    noise.set(ylim=(-0.1, noise.get_ylim()[1]), ylabel=f"contrastive loss after {s.iterations} steps")
    noise.set_xlim(min(0, noise.get_xlim()[0]), 1)
    noise.legend(fontsize=9, loc="upper right", bbox_to_anchor=(1, 0.84))
    title = (
        f"Alignment before training and loss after it: {s.train} training and {s.held_out} held-out pairs, linear "
        f"projectors to {s.shared_dim}, temperature {s.temperature:g}, seed {s.seed}; rank correlation over runs with "
        "its 95% interval"
    )
    figure.suptitle(title, fontsize=10)
    return figure


def _panel(axes: Any, study: ToyStudy, arm: str, measure: str, level: tuple[str, str], what: str) -> None:
    """Draw an arm, coloured by what it varies: a column, and what to call it."""
    import matplotlib as mpl
    from matplotlib.colors import BoundaryNorm, ListedColormap

    runs, (column, label), n = study.arm(arm), level, study.settings.held_out
    x, loss, held_out, values = ([run[name] for run in runs] for name in (measure, "loss", "held_out_loss", column))
    levels = sorted(set(values))
    colours = ListedColormap(mpl.colormaps[SCALE](np.linspace(0, 0.93, len(levels))))
    norm = BoundaryNorm(np.arange(len(levels) + 1) - 0.5, len(levels))
    if measure == "cka":
        ends = np.abs([[run["cka"] - run[end] for run in runs] for end in ("cka_low", "cka_high")])
        axes.errorbar(x, loss, xerr=ends, ecolor="0.8", fmt="none", zorder=1)
    places = [levels.index(value) for value in values]
    discs = axes.scatter(x, loss, c=places, cmap=colours, norm=norm, s=34, label="training pairs")
    axes.scatter(x, held_out, facecolors="none", edgecolors=discs.to_rgba(places), s=40, label="held-out pairs")
    axes.axhline(np.log(n), color="grey", linestyle=":", linewidth=1, label=f"log({n})")
    bar = axes.figure.colorbar(discs, ax=axes, location="bottom", ticks=range(len(levels)), aspect=35)
    bar.set_ticklabels([f"{value:g}" for value in levels])
    bar.set_label(label)
    found = study.correlations[arm][measure]
    axes.set_xlabel(f"{MEASURES[measure]} before training")
    told = f"training {found['loss']}\nheld out {found['held_out_loss']}"
    axes.set_title(f"{what}, {len(runs)} runs\n{told}", fontsize=10)
