"""What the runs of the toy study say: rank correlations, a paragraph and a picture, all of which follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from freezealign.alignment.toy_runs import MEASURES, OUTCOMES, ToyRun, ToySettings
from freezealign.figures import SCALE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("noise", "width", "stretch")
PLACES = {
    "noise": "across noise",
    "within_noise": "within a level of noise",
    "width": "across widths",
    "stretch": "across stretches",
}


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

    @property
    def includes_zero(self) -> bool:
        """Whether the interval does."""
        return self.low <= 0 <= self.high

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
    """What :func:`~freezealign.alignment.toy.run_toy` found.

    Args:
        settings: Of the study.
        runs: All of its runs.
    """

    settings: ToySettings
    runs: Sequence[ToyRun]

    def arm(self, name: str) -> list[ToyRun]:
        """Return the runs of one arm."""
        return [run for run in self.runs if run.arm == name]

    @cached_property
    def correlations(self) -> dict[str, dict[str, dict[str, Correlation]]]:
        """For each part of the study, measure and outcome, the rank correlation.

        The parts are the arms, ``all`` of them together, and ``within_noise``, the arm ``noise`` with runs compared
        only to those of the same level of noise.
        """
        parts = {**{arm: self.arm(arm) for arm in ARMS}, "within_noise": self.arm("noise"), "all": self.runs}
        return {part: self._correlate(runs, part == "within_noise") for part, runs in parts.items()}

    def _correlate(self, runs: Sequence[ToyRun], within: bool) -> dict[str, dict[str, Correlation]]:
        groups = [run.first_noise for run in runs] if within else None
        columns = {name: [getattr(run, name) for run in runs] for name in (*MEASURES, *OUTCOMES)}
        options = groups, self.settings.resamples, self.settings.seed
        return {x: {y: rank_correlation(columns[x], columns[y], *options) for y in OUTCOMES} for x in MEASURES}

    def __repr__(self) -> str:
        found = self.correlations["noise"]["cka"]["loss"]
        return f"ToyStudy({len(self.runs)} runs, CKA and loss across noise: {found})"


def describe(study: ToyStudy) -> str:
    """Return a paragraph on where the claim holds, where it fails, and where the runs cannot tell."""
    s, equal = study.settings, float(np.log(study.settings.held_out))
    runs = {arm: f"{len(study.arm(arm))} runs" for arm in ARMS}
    width = study.correlations["width"]["cka_biased"]
    overfit = width["loss"].high < 0 < width["held_out_loss"].low
    worse = sum(run.held_out_loss > equal for run in study.runs)
    return " ".join(
        [
            "The claim: the higher the alignment before training, the lower the loss after it.",
            f"Across noise of {min(s.noises):g} to {max(s.noises):g} and random maps ({runs['noise']}) "
            f"{_verdict(study, 'noise', 'cka')}.",
            f"Among runs of one level of noise {_verdict(study, 'within_noise', 'cka')}.",
            f"Across widths of {min(s.widths)} to {max(s.widths)} at {s.train} training pairs ({runs['width']}), where "
            f"biased CKA goes {_course(study, 'width', 'dim', 'cka_biased')}, {_verdict(study, 'width', 'cka_biased')}"
            f"{': this rise in biased CKA goes with over-fitting' if overfit else ''}.",
            f"There unbiased CKA goes {_course(study, 'width', 'dim', 'cka')}, and {_verdict(study, 'width', 'cka')}.",
            f"Across invertible linear stretches of {min(s.stretches):g} to {max(s.stretches):g} ({runs['stretch']}), "
            f"where unbiased CKA goes {_course(study, 'stretch', 'stretch', 'cka')} and held-out loss "
            f"{_course(study, 'stretch', 'stretch', 'held_out_loss')}, {_verdict(study, 'stretch', 'cka')}.",
            f"Intervals with held-out loss that include 0: {_unclear(study)}.",
            f"Held-out loss is above log({s.held_out}) = {equal:.2f}, that of equal logits, in {worse} of all "
            f"{len(study.runs)} runs.",
        ]
    )


def _verdict(study: ToyStudy, part: str, measure: str) -> str:
    """Return whether the claim holds in a part of the study, and how both losses go with a measure there."""
    found = study.correlations[part][measure]
    held_out = found["held_out_loss"]
    verdict = "holds" if held_out.high < 0 else "is reversed" if held_out.low > 0 else "is not seen"
    return (
        f"the claim {verdict}: as {MEASURES[measure]} rises, training loss {_trend(found['loss'])} and held-out loss "
        f"{_trend(held_out)}"
    )


def _trend(found: Correlation) -> str:
    if np.isnan(found.value):
        return "does not vary"
    if found.includes_zero:
        return f"has no clear trend (rho {found})"
    return f"{'falls' if found.value < 0 else 'rises'} (rho {found})"


def _course(study: ToyStudy, arm: str, level: str, column: str) -> str:
    """Return the mean at the lowest level of an arm and at the highest."""
    levels, values = (np.array([getattr(run, name) for run in study.arm(arm)]) for name in (level, column))
    return f"from {values[levels == levels.min()].mean():.2f} to {values[levels == levels.max()].mean():.2f}"


def _unclear(study: ToyStudy) -> str:
    pieces = []
    for measure, name in MEASURES.items():
        found = {place: study.correlations[part][measure]["held_out_loss"] for part, place in PLACES.items()}
        places = [place for place, correlation in found.items() if correlation.includes_zero]
        if places:
            pieces.append(f"{name} {' and '.join(places)}")
    return "; ".join(pieces) or "none"


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
    unbiased = [run.cka for run in study.arm("width")]
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
    """Draw an arm, coloured by what it varies: a field of :class:`ToyRun`, and what to call it."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    runs, (column, label), n = study.arm(arm), level, study.settings.held_out
    x, loss, held_out, values = (
        [getattr(run, name) for run in runs] for name in (measure, "loss", "held_out_loss", column)
    )
    levels = sorted(set(values))
    colours = ListedColormap(mpl.colormaps[SCALE](np.linspace(0, 0.93, len(levels))))
    of_runs = [colours(levels.index(value)) for value in values]
    if measure == "cka":
        ends = np.abs([[run.cka - run.cka_low for run in runs], [run.cka_high - run.cka for run in runs]])
        axes.errorbar(x, loss, xerr=ends, ecolor="0.8", fmt="none", zorder=1)
    axes.scatter(x, loss, c=of_runs, s=34, label="training pairs")
    axes.scatter(x, held_out, facecolors="none", edgecolors=of_runs, s=40, label="held-out pairs")
    axes.axhline(np.log(n), color="grey", linestyle=":", linewidth=1, label=f"log({n})")
    colour_map = ScalarMappable(BoundaryNorm(np.arange(len(levels) + 1) - 0.5, len(levels)), colours)
    bar = axes.figure.colorbar(colour_map, ax=axes, location="bottom", ticks=range(len(levels)), aspect=35)
    bar.set_ticklabels([f"{value:g}" for value in levels])
    bar.set_label(label)
    found = study.correlations[arm][measure]
    axes.set_xlabel(f"{MEASURES[measure]} before training")
    told = f"training {found['loss']}\nheld out {found['held_out_loss']}"
    axes.set_title(f"{what}, {len(runs)} runs\n{told}", fontsize=10)
