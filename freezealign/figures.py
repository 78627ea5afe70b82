"""Figures whose font has all the scripts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONT_PACKAGE = "noto_cjk_sans_jp_regular"


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
