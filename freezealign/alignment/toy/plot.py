"""The picture of a study: loss after training against CKA before it, one panel an arm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from freezealign.alignment.toy.training import MEASURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from freezealign.alignment.toy.study import ToyStudy


def draw(study: ToyStudy) -> Figure:
    """Draw training loss as discs and held-out loss as rings, coloured by what the arm varies."""
    from matplotlib.figure import Figure

    s = study.settings
    figure = Figure(figsize=(13, 6), layout="constrained")
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
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    runs, (column, label), n = study.arm(arm), level, study.settings.held_out
    x, loss, held_out = ([getattr(run, name) for run in runs] for name in (measure, "loss", "held_out_loss"))
    values = [getattr(run, column) for run in runs]
    levels = sorted(set(values))
    colours = ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.93, len(levels))))
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
    axes.set_xlabel(f"{MEASURES[measure]} before training")
    found = study.correlations[arm][measure]
    told = f"training {found['loss']}\nheld out {found['held_out_loss']}"
    axes.set_title(f"{what}, {len(runs)} runs\n{told}", fontsize=10)
