"""Figures whose font has all the scripts."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from freezealign.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONT_PACKAGE = "noto_cjk_sans_jp_regular"

# Told apart with any colour vision and on white: Okabe and Ito's colours (jfly.uni-koeln.de/color), the yellow
# darkened, and one of Paul Tol's. Neighbours in the list differ most.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#000000", "#B8A800"]
SCALE = "cividis"  # from dark blue to yellow, evenly in lightness, and the same to red-green colour-blind readers


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, inches wide and high; Chinese, Japanese and Korean show where the font is installed."""
    from matplotlib import font_manager, rcParams
    from matplotlib.figure import Figure

    spec = importlib.util.find_spec(FONT_PACKAGE)
    if spec is not None and spec.origin is not None:
        font = next(Path(spec.origin).parent.glob("*.otf"))
        font_manager.fontManager.addfont(str(font))
        rcParams["font.family"] = ["DejaVu Sans", font_manager.FontProperties(fname=str(font)).get_name()]
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure in the format that ``path`` ends with, PNG by default, whole or not at all."""
    path = path if path.suffix else path.with_suffix(".png")
    write_atomically(path, lambda file: figure.savefig(file, dpi=dpi, format=path.suffix[1:]))


def text_color(background: Sequence[float]) -> str:
    """Return ``black`` or ``white``, whichever has more contrast to a colour, red, green and blue in [0, 1].

    Source: relative luminance and contrast as in WCAG 2.1.
    """
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in background[:3])
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"
