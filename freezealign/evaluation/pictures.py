"""What one would rather look at than read: a confusion matrix, overlays of masks, a curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from freezealign.figures import new_figure

MOST_CLASSES = 30
DPI = 100


class Overlay(NamedTuple):
    """A picture with its true and its predicted mask.

    Args:
        image: RGB.
        truth: (H, W) class indices; negative where there is nothing to show.
        predicted: (H, W) likewise.
    """

    image: Image.Image
    truth: np.ndarray
    predicted: np.ndarray


def draw_confusion(path: Path, names: Sequence[str], labels: np.ndarray, predicted: np.ndarray) -> None:
    """Draw which class (row) is taken for which (column), as shares of the row.

    Of more than ``MOST_CLASSES`` classes, those that take part in the most mistakes are shown.

    Args:
        path: The PNG to write.
        names: The C names.
        labels: (n,) true classes.
        predicted: (n,) predicted ones.
    """
    matrix = np.zeros((len(names), len(names)))
    np.add.at(matrix, (labels, predicted), 1)
    mistakes = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    shown = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES])
    shares = matrix[np.ix_(shown, shown)] / np.maximum(1, matrix.sum(1)[shown, None])
    side = 3 + 0.28 * len(shown)
    figure = new_figure(side, side)
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = [_short(names[index]) for index in shown]
    axis.set_xticks(range(len(shown)), ticks, rotation=90, fontsize=8)
    axis.set_yticks(range(len(shown)), ticks, fontsize=8)
    some = "" if len(shown) == len(names) else f" (the {len(shown)} of {len(names)} with the most mistakes)"
    axis.set(xlabel="predicted", ylabel="true", title=f"Share of each class's images{some}")
    figure.savefig(path, dpi=DPI)


def draw_overlays(path: Path, overlays: Sequence[Overlay], names: Sequence[str]) -> None:
    """Draw pictures, the truth over each and the prediction over each, with a legend.

    Args:
        path: The PNG to write.
        overlays: What to draw, a row each.
        names: The names of the classes.
    """
    figure = new_figure(12, 3 * len(overlays))
    axes = figure.subplots(len(overlays), 4, squeeze=False, width_ratios=[1, 1, 1, 0.8])
    for row, overlay in zip(axes, overlays):
        present = [index for index in np.union1d(overlay.truth, overlay.predicted) if index >= 0]
        colours = {index: _colour(place) for place, index in enumerate(present)}
        for axis, mask, title in zip(row, (None, overlay.truth, overlay.predicted), ("picture", "truth", "predicted")):
            axis.imshow(overlay.image)
            if mask is not None:
                axis.imshow(_paint(mask, colours), interpolation="nearest")
            axis.set_title(title, fontsize=8)
        for axis in row:
            axis.axis("off")
        for place, index in enumerate(present[:16]):
            row[3].text(0, 1 - 0.06 * place, _short(names[index], 40), color=colours[index], fontsize=8, va="top")
    figure.savefig(path, dpi=DPI)


def draw_curves(
    path: Path, curves: Mapping[str, Sequence[Mapping[str, float]]], labels: tuple[str, str], title: str
) -> None:
    """Draw a line a name with its interval.

    Args:
        path: The PNG to write.
        curves: For each name points with ``x``, ``y``, ``low`` and ``high``.
        labels: Of the axes.
        title: Above it.
    """
    figure = new_figure(7, 4.5)
    axis = figure.subplots()
    for name, points in curves.items():
        xs, ys, lows, highs = ([point[key] for point in points] for key in ("x", "y", "low", "high"))
        (line,) = axis.plot(xs, ys, marker="o", label=name)
        axis.fill_between(xs, lows, highs, color=line.get_color(), alpha=0.15)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set(xlabel=labels[0], ylabel=labels[1], title=title, ylim=(0, None))
    if len(curves) > 1:
        axis.legend()
    figure.savefig(path, dpi=DPI)


def _short(name: str, width: int = 24) -> str:
    """Return a name cut to ``width`` characters, without what Matplotlib would read as a formula."""
    cut = name if len(name) <= width else f"{name[: width - 1]}…"
    return cut.replace("$", r"\$")


def _colour(place: int) -> Any:
    import matplotlib as mpl

    return mpl.colormaps["tab20"](place % 20)


def _paint(mask: np.ndarray, colours: Mapping[int, Any]) -> np.ndarray:
    """Return an RGBA picture (H, W, 4) of the mask, transparent where it is negative."""
    painted = np.zeros((*mask.shape, 4))
    for index, colour in colours.items():
        painted[mask == index] = (*colour[:3], 0.65)
    return painted
