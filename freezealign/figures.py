"""Figures whose font has all the scripts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONT_PACKAGE = "noto_cjk_sans_jp_regular"

# Told apart with any colour vision and on white: Okabe and Ito's colours (jfly.uni-koeln.de/color), the yellow darkened,
# and one of Paul Tol's. Neighbours in the list differ most.
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
