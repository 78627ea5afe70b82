"""The files that a pattern names."""

from __future__ import annotations

import math
import re
from itertools import islice
from pathlib import Path

from freezealign.data.sources.shards import import_webdataset

FILE_LIMIT = 1_000_000
"""Most names that the braces of a pattern may stand for."""


def expand(pattern: str) -> list[Path]:
    """Return the paths that a pattern names: braces such as ``{000..012}`` in their order, ``*`` and ``?`` sorted.

    A name without any of these, or that matches nothing, stays as it is.

    Raises:
        ModuleNotFoundError: If the pattern has braces and webdataset is not installed.
        ValueError: If the braces are not balanced.
    """
    names = [pattern]
    if "{" in pattern:
        import_webdataset()
        from braceexpand import braceexpand  # webdataset brings it

        ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)
        if math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges) > FILE_LIMIT:
            raise ValueError(f"'{pattern}' stands for more than {FILE_LIMIT:,} names.")
        names = list(islice(braceexpand(pattern), FILE_LIMIT + 1))
        if len(names) > FILE_LIMIT:
            raise ValueError(f"'{pattern}' stands for more than {FILE_LIMIT:,} names.")
    return [path for name in names for path in _match(Path(name))]


def _match(path: Path) -> list[Path]:
    if not set("*?[") & set(str(path)):
        return [path]
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) or [path]
