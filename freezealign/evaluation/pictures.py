"""What one would rather look at than read: a confusion matrix, overlays of masks, a curve."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from freezealign.figures import PALETTE, SCALE, new_figure

MOST_CLASSES = 30
LEGEND_LINES = 12  # a row of pictures is no higher
DPI = 100
OPACITY = 0.7
Colour = tuple[float, float, float]
BACKGROUND: Colour = (0.75, 0.75, 0.75)


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
    shown = most_mistaken(matrix, MOST_CLASSES)
    shares = matrix[np.ix_(shown, shown)] / np.maximum(1, matrix.sum(1)[shown, None])
    side = 3 + 0.28 * len(shown)
    figure = new_figure(side + 0.6, side)
    axis = figure.subplots()
    image = axis.imshow(shares, cmap=SCALE, vmin=0)
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the true class's images")
    ticks = [_short(names[index]) for index in shown]
    axis.set_xticks(range(len(shown)), ticks, rotation=90, fontsize=8)
    axis.set_yticks(range(len(shown)), ticks, fontsize=8)
    some = "" if len(shown) == len(names) else f" (the {len(shown)} of {len(names)} with the most mistakes)"
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(f"Which class is taken for which{some}", fontsize=10, wrap=True)
    figure.savefig(path, dpi=DPI)


def most_mistaken(matrix: np.ndarray, most: int) -> np.ndarray:
    """Return, ascending, at most ``most`` classes of a matrix (C, C) of counts: those in the most mistakes."""
    mistakes = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    return np.sort(np.argsort(-mistakes, kind="stable")[:most])


def draw_overlays(path: Path, overlays: Sequence[Overlay], names: Sequence[str]) -> None:
    """Draw pictures, the truth over each and the prediction over each, with a legend.

    Args:
        path: The PNG to write.
        overlays: What to draw, a row each.
        names: The names of the classes, and last that of the background.
    """
    figure = new_figure(12, 3 * len(overlays))
    axes = figure.subplots(len(overlays), 4, squeeze=False, width_ratios=[1, 1, 1, 0.8])
    for row, overlay in zip(axes, overlays):
        colours = dict(zip(by_importance(overlay), _colours()))
        if len(names) - 1 in colours:
            colours[len(names) - 1] = BACKGROUND
        for axis, mask, title in zip(row, (None, overlay.truth, overlay.predicted), ("picture", "truth", "predicted")):
            axis.imshow(overlay.image)
            if mask is not None:
                axis.imshow(_paint(mask, colours), interpolation="nearest")
            axis.set_title(title, fontsize=9)
        for axis in row:
            axis.axis("off")
        _draw_legend(row[3], [(names[index], colour) for index, colour in colours.items()])
    figure.savefig(path, dpi=DPI)


def by_importance(overlay: Overlay) -> list[int]:
    """Return the classes to be seen: those of the truth, then those only predicted, each from the largest on."""
    order: dict[int, None] = {}
    for mask in (overlay.truth, overlay.predicted):
        found, sizes = np.unique(mask[mask >= 0], return_counts=True)
        order |= dict.fromkeys(found[np.argsort(-sizes, kind="stable")].tolist())
    return list(order)


def _colours() -> Iterator[Colour]:
    """Yield colours far from those before: the palette, then ever paler."""
    from matplotlib.colors import to_rgb

    for turn in itertools.count():
        for colour in PALETTE:
            red, green, blue = (1 - (1 - part) * 0.55**turn for part in to_rgb(colour))
            yield red, green, blue


def _draw_legend(axis: Any, named: Sequence[tuple[str, Colour]]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=_short(name, 40)) for name, colour in named[:LEGEND_LINES]]
    if (rest := len(named) - LEGEND_LINES) > 0:
        patches.append(Patch(alpha=0, label=f"and {rest} more"))
    axis.legend(handles=patches, loc="upper left", fontsize=8, frameon=False, borderpad=0, borderaxespad=0)


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
    for colour, (name, points) in zip(itertools.cycle(PALETTE), curves.items()):
        xs, ys, lows, highs = ([point[key] for point in points] for key in ("x", "y", "low", "high"))
        axis.plot(xs, ys, marker="o", label=name, color=colour)
        axis.fill_between(xs, lows, highs, color=colour, alpha=0.12, linewidth=0)
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


def _paint(mask: np.ndarray, colours: Mapping[int, Colour]) -> np.ndarray:
    """Return an RGBA picture (H, W, 4) of the mask, transparent where it is negative."""
    painted = np.zeros((*mask.shape, 4))
    for index, colour in colours.items():
        painted[mask == index] = (*colour, OPACITY)
    return painted
