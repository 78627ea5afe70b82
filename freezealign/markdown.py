"""Scores and tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freezealign.words import printable


def score_cell(results: Mapping[str, Any], metric: str) -> str:
    """Return ``0.246 [0.203–0.289]``: a score and its interval, where it has one; ``none`` where there is no score."""
    value = results[metric]
    if value is None:
        return "none"
    low, high = (results.get(f"{metric}_{end}") for end in ("low", "high"))
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}–{high:.3f}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with a header; a bar in a cell becomes a slash, and control characters are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(printable(cell).replace('|', '/') for cell in line)} |" for line in lines)
