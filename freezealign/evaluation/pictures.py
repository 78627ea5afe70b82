"""What one would rather look at than read: a confusion matrix, overlays of masks, a curve."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from freezealign.figures import PALETTE, SCALE, new_figure, save_figure

MOST_CLASSES = 30
LEGEND_LINES = 12  # a row of pictures is no higher
DPI = 100
OPACITY = 0.7
Colour = tuple[float, float, float]
BACKGROUND: Colour = (0.75, 0.75, 0.75)


class Overlay(NamedTuple):
    """A picture with its true and its predicted mask (H, W): class indices, negative where nothing is to be shown."""

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
    save_figure(figure, path, DPI)


def most_mistaken(matrix: np.ndarray, most: int) -> np.ndarray:
    """Return, ascending, at most ``most`` classes of a matrix (C, C) of counts: those in the most mistakes."""
    mistakes = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    return np.sort(np.argsort(-mistakes, kind="stable")[:most])


def draw_overlays(path: Path, overlays: Sequence[Overlay], names: Sequence[str]) -> None:
    """Draw into a PNG a row a picture, the truth and the prediction over each; background has the last name."""
    from matplotlib.patches import Patch

    figure = new_figure(12, 3 * len(overlays))
    axes = figure.subplots(len(overlays), 4, squeeze=False, width_ratios=[1, 1, 1, 0.8])
    for row, overlay in zip(axes, overlays):
        colours = dict(zip(by_importance(overlay), _colours()))
        if len(names) - 1 in colours:
            colours[len(names) - 1] = BACKGROUND
        for axis, mask, title in zip(row, (None, overlay.truth, overlay.predicted), ("picture", "truth", "predicted")):
            axis.imshow(overlay.image)
            if mask is not None:
                painted = np.zeros((*mask.shape, 4))  # transparent where it is negative
                for index, colour in colours.items():
                    painted[mask == index] = (*colour, OPACITY)
                axis.imshow(painted, interpolation="nearest")
            axis.set_title(title, fontsize=9)
        for axis in row:
            axis.axis("off")
        patches = [Patch(color=colour, label=_short(names[index], 40)) for index, colour in colours.items()]
        if (rest := len(patches) - LEGEND_LINES) > 0:
            patches[LEGEND_LINES:] = [Patch(alpha=0, label=f"and {rest} more")]
        row[3].legend(handles=patches, loc="upper left", fontsize=8, frameon=False, borderpad=0, borderaxespad=0)
    save_figure(figure, path, DPI)


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


def draw_curves(
    path: Path, curves: Mapping[str, Sequence[Mapping[str, float]]], labels: tuple[str, str], title: str
) -> None:
    """Draw into a PNG a line for each name, of points with ``x``, ``y``, ``low`` and ``high``."""
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
    save_figure(figure, path, DPI)


def _short(name: str, width: int = 24) -> str:
    """Return a name cut to ``width`` characters, without what Matplotlib would read as a formula."""
    cut = name if len(name) <= width else f"{name[: width - 1]}…"
    return cut.replace("$", r"\$")
