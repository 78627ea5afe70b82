"""The sheet of a data card: the best pictures of some concepts, from the rarest to the most common."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from freezealign.curation.result import Curation
from freezealign.data.sources import open_pairs
from freezealign.figures import new_figure
from freezealign.images import read_image
from freezealign.inputs import InputError, shorten

DPI = 100
SHEET_ROWS, SHEET_COLUMNS = 8, 8


def draw_sheet(path: Path, curation: Curation, pictures: Any) -> None:
    """Draw the best pictures of concepts that are evenly spaced among those served, one line each.

    Args:
        path: The picture to write.
        curation: What was selected.
        pictures: What ``open_pairs`` reads, or pairs; those that are missing stay empty.

    Raises:
        ValueError: If none of the pictures is there.
    """
    rows = sheet_rows(curation)
    keys = {concept: list(map(str, curation.pool.take(own, "id"))) for concept, own in rows.items()}
    wanted = {key for own in keys.values() for key in own}
    found = find_pictures(pictures, wanted)
    if not found:
        raise ValueError(
            f"none of the {len(wanted)} pictures of the sheet is in {shorten(pictures)}; their ids differ."
        )
    figure = new_figure(1.3 * SHEET_COLUMNS + 1.6, 1.4 * len(rows))
    axes = figure.subplots(len(rows), SHEET_COLUMNS, squeeze=False)
    for line, (concept, own) in zip(axes, keys.items()):
        line[0].set_ylabel(curation.concepts[concept][:24], rotation=0, ha="right", va="center", parse_math=False)
        for axis in line:
            axis.set(xticks=[], yticks=[], frame_on=False)
        for axis, key in zip(line, own):
            try:
                axis.imshow(read_image(found[key]))
            except (KeyError, InputError):
                axis.set_title("no picture", fontsize=7)
    figure.savefig(path, dpi=DPI)


def sheet_rows(curation: Curation) -> dict[int, np.ndarray]:
    """Return for each concept of the sheet its best rows."""
    owners = curation.selection.concepts
    served = list(dict.fromkeys(owners.tolist()))
    some = np.linspace(0, len(served) - 1, min(SHEET_ROWS, len(served))).round().astype(int)
    return {served[i]: curation.selection.rows[owners == served[i]][:SHEET_COLUMNS] for i in some}


def find_pictures(source: Any, ids: Collection[str]) -> dict[str, Any]:
    """Return the pictures of some pairs by id, read from the beginning of ``source`` until all are found."""
    found: dict[str, Any] = {}
    for position, pair in enumerate(open_pairs(source)):
        key = str(pair.get("id", position))
        if key in ids:
            found[key] = pair["image"]
            if len(found) == len(ids):
                break
    return found
