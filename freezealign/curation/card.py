"""The result of a curation, and its data card: what was selected out of what, how, and under which licences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from freezealign.curation.pools import Pool
from freezealign.curation.scoring import Scores, Scoring
from freezealign.curation.selection import Selection
from freezealign.data.sources import open_pairs
from freezealign.figures import new_figure, save_figure
from freezealign.files import write_atomically, write_json_atomically
from freezealign.images import read_image
from freezealign.inputs import InputError, Skipped, shorten
from freezealign.markdown import markdown_table
from freezealign.words import printable

MOST_LISTED = 30
BINS = 60
DPI = 100
SHEET_ROWS, SHEET_COLUMNS = 8, 8


@dataclass(frozen=True)
class Curation:
    """What was selected, and what the data card tells of it.

    Args:
        scoring: The pools, the first of which was selected from, and the prototypes.
        per_concept: The most pairs a concept took.
        scores: The candidates.
        skipped: Rows whose vector is not usable, then candidates whose id, caption or the like cannot be read, and why.
        filters: What each filter removed.
        selection: The selected rows.
        sample_concepts: (m,) the concept that each row of a random sample of the pool is most like.
        sample_scores: (m,) float32, its score there.
    """

    scoring: Scoring
    per_concept: int
    scores: Scores
    skipped: list[Skipped]
    filters: list[dict[str, Any]]
    selection: Selection
    sample_concepts: np.ndarray
    sample_scores: np.ndarray

    @property
    def pool(self) -> Pool:
        """The pool; with several encoders, the first."""
        return self.scoring.pools[0]

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts."""
        return self.scoring.concepts

    @property
    def ids(self) -> list[str]:
        """The ids of the selected pairs, in the order of the selection."""
        return [str(name) for name in self.own_ids]

    @cached_property
    def own_ids(self) -> list[Any]:
        """The same as the pool has them, of any type; read from it once."""
        return self.pool.take(self.selection.rows, "id")


def write_card(curation: Curation, folder: Path, pictures: Any = None) -> None:
    """Write ``card.json``, ``card.md`` and their figures; where there are pictures also ``sheet.jpg``."""
    card = _content(curation)
    write_json_atomically(folder / "card.json", card)
    _draw_coverage(folder / "coverage.png", card)
    _draw_scores(folder / "scores.png", curation)
    if pictures is not None:
        _draw_sheet(folder / "sheet.jpg", curation, pictures)
    text = _markdown(card, sheet=pictures is not None)
    write_atomically(folder / "card.md", lambda file: file.write(text.encode()))


def _content(curation: Curation) -> dict[str, Any]:
    """Return the card as JSON."""
    scoring, scores, pool = curation.scoring, curation.scores, curation.pool
    after = curation.selection.counts(len(curation.concepts))
    before = np.bincount(curation.sample_concepts, minlength=len(curation.concepts))
    licences = None
    if pool.has("licence"):
        found = ["not stated" if x in (None, "") else str(x) for x in pool.take(curation.selection.rows, "licence")]
        licences = dict(Counter(found).most_common())
    return {
        "pool": {
            "names": [pool.name for pool in scoring.pools],
            "rows": scores.rows,
            "unusable": scores.unusable,
            "unreadable": len(curation.skipped) - scores.unusable,
        },
        "prototypes": [{"encoder": p.origin and p.origin.name, **p.provenance} for p in scoring.prototypes],
        "concepts": len(curation.concepts),
        "candidates_per_concept": scores.keys.shape[1],
        "search": "exact" if scores.recall is None else "approximate, FAISS IVF-PQ",
        "recall": scores.recall,
        "per_concept": curation.per_concept,
        "filters": curation.filters,
        "selected": len(curation.selection),
        "short": {curation.concepts[c]: int(after[c]) for c in np.flatnonzero(after < curation.per_concept)},
        "coverage": {
            "sample": len(curation.sample_concepts),
            "before": dict(zip(curation.concepts, before.tolist())),
            "after": dict(zip(curation.concepts, after.tolist())),
            "effective_before": _effective(before),
            "effective_after": _effective(after),
        },
        "licences": licences,
    }


def _effective(counts: np.ndarray) -> float:
    """Return the effective number of concepts: the exponential of the entropy of their shares."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def _draw_coverage(path: Path, card: Mapping[str, Any]) -> None:
    figure = new_figure(7, 4)
    axis = figure.subplots()
    for key, label in (("before", "the pool"), ("after", "the selection")):
        counts = np.sort(np.array(list(card["coverage"][key].values())))[::-1]
        axis.plot(np.arange(1, len(counts) + 1), counts / max(1, counts.sum()), label=label)
    axis.set(xlabel="concepts, most common first", ylabel="share of pairs", yscale="log", title="Coverage of concepts")
    axis.legend()
    save_figure(figure, path, DPI)


def _draw_scores(path: Path, curation: Curation) -> None:
    figure = new_figure(7, 4)
    axis = figure.subplots()
    parts = {"the pool, best concept": curation.sample_scores, "the selection": curation.selection.scores}
    known = np.concatenate(list(parts.values()))
    bins = np.linspace(known.min(), known.max() + 1e-6, BINS).tolist()
    for label, scores in parts.items():
        axis.hist(scores, bins=bins, density=True, alpha=0.6, label=label)
    axis.set(xlabel="cosine with the prototype", ylabel="density", title="Scores")
    axis.legend()
    save_figure(figure, path, DPI)


def _draw_sheet(path: Path, curation: Curation, pictures: Any) -> None:
    """Draw the best pictures of concepts, a line each, evenly spaced from the rarest on; what is missing stays empty.

    Raises:
        ValueError: If none of the pictures is there.
    """
    selection = curation.selection
    served = list(dict.fromkeys(selection.concepts.tolist()))
    some = np.linspace(0, len(served) - 1, min(SHEET_ROWS, len(served))).round().astype(int)
    rows = {served[i]: selection.rows[selection.concepts == served[i]][:SHEET_COLUMNS] for i in some}
    keys = {concept: list(map(str, curation.pool.take(own, "id"))) for concept, own in rows.items()}
    wanted = {key for own in keys.values() for key in own}
    found = _find_pictures(pictures, wanted)
    if not found:
        raise ValueError(
            f"none of the {len(wanted)} pictures of the sheet is in {shorten(pictures)}; their ids differ."
        )
    figure = new_figure(1.3 * SHEET_COLUMNS + 1.6, 1.4 * len(rows))
    axes = figure.subplots(len(rows), SHEET_COLUMNS, squeeze=False)
    for line, (concept, own) in zip(axes, keys.items()):
        name = printable(curation.concepts[concept])[:24]
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", parse_math=False)
        for axis in line:
            axis.set(xticks=[], yticks=[], frame_on=False)
        for axis, key in zip(line, own):
            try:
                axis.imshow(read_image(found[key]))
            except (KeyError, InputError):
                axis.set_title("no picture", fontsize=7)
    save_figure(figure, path, DPI)


def _find_pictures(source: Any, ids: Collection[str]) -> dict[str, Any]:
    """Return the pictures of some pairs by id, read from the beginning of ``source`` until all are found."""
    found: dict[str, Any] = {}
    for position, pair in enumerate(open_pairs(source)):
        key = str(pair.get("id", position))
        if key in ids and "image" in pair:
            found[key] = pair["image"]
            if len(found) == len(ids):
                break
    return found


def _markdown(card: Mapping[str, Any], sheet: bool) -> str:
    coverage = card["coverage"]
    parts = ["# Data card", _summary(card)]
    removed = [[f["filter"], f"{f['candidates']:,}", f"{f['removed']:,}"] for f in card["filters"]]
    if removed:
        parts += ["## Filters, in order", markdown_table(["filter", "candidates", "removed"], removed)]
    parts += [
        "## Coverage",
        f"Each pair of a random sample of {coverage['sample']:,} of the pool counts for the concept it is most like; "
        "each selected pair counts for the concept that took it. The effective number of concepts, the exponential of "
        f"the entropy of their shares, is **{coverage['effective_before']:,.1f} before and "
        f"{coverage['effective_after']:,.1f} after**, of {card['concepts']:,}.",
        "![Share of pairs of each concept](coverage.png)\n\n![Scores](scores.png)",
    ]
    if card["short"]:
        parts += ["## Concepts below their quota", _listed(card["short"], card["per_concept"])]
    if sheet:
        parts += ["## Pictures", "The best of some concepts, from the rarest on.\n\n![Pictures](sheet.jpg)"]
    licences = "The pool does not state the licences of its pairs. Look them up before you publish anything."
    if card["licences"] is not None:
        rows = [[name, f"{count:,}"] for name, count in card["licences"].items()]
        licences = markdown_table(["licence", "pairs"], rows)
    parts += ["## Licences", licences, "## Prototypes", "\n".join(map(_prototype, card["prototypes"]))]
    return "\n\n".join(parts) + f"\n\nPool: {', '.join(map(printable, card['pool']['names']))}.\n"


def _summary(card: Mapping[str, Any]) -> str:
    pool, recall = card["pool"], "" if card["recall"] is None else f", recall {card['recall']:.3f}"
    return (
        f"**{card['selected']:,} of {pool['rows']:,} pairs**, for {card['concepts']:,} concepts with at most "
        f"{card['per_concept']:,} each, chosen among the {card['candidates_per_concept']:,} most like each concept "
        f"({card['search']}{recall} search), the rarest concept first. {pool['unusable']:,} pairs have no usable "
        f"vector; {pool['unreadable']:,} candidates have no id, or what cannot be read. `skipped.parquet` lists them."
    )


def _listed(short: Mapping[str, int], quota: int) -> str:
    names = [f"{printable(name)} ({count:,})" for name, count in sorted(short.items(), key=lambda item: item[1])]
    more = f", and {len(names) - MOST_LISTED:,} more" if len(names) > MOST_LISTED else ""
    return (
        f"{len(names):,} concepts have fewer than {quota:,} pairs; more candidates or a larger pool may help: "
        f"{', '.join(names[:MOST_LISTED])}{more}."
    )


def _prototype(one: Mapping[str, Any]) -> str:
    examples = list(one.get("examples", {}).values()) or [0]
    of = printable(f"{one.get('encoder') or 'an unnamed encoder'}, {one.get('modality', 'vectors')}")
    return f"* {of}: {min(examples)} to {max(examples)} examples a concept, {len(one.get('skipped', []))} not readable."
