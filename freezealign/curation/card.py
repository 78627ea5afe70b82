"""The data card: what was selected out of what, how, and under which licences; with its figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from freezealign.curation.result import Curation
from freezealign.curation.sheet import DPI, draw_sheet
from freezealign.figures import new_figure
from freezealign.files import write_atomically, write_json_atomically
from freezealign.markdown import markdown_table

MOST_LISTED = 30
BINS = 60


def write_card(curation: Curation, folder: Path, pictures: Any = None) -> None:
    """Write ``card.json``, ``card.md`` and their figures; ``sheet.jpg`` where there are pictures.

    Raises:
        ValueError: If none of the pictures of the sheet is among ``pictures``.
    """
    card = card_content(curation)
    write_json_atomically(folder / "card.json", card)
    _draw_coverage(folder / "coverage.png", card)
    _draw_scores(folder / "scores.png", curation)
    if pictures is not None:
        draw_sheet(folder / "sheet.jpg", curation, pictures)
    text = _markdown(card, sheet=pictures is not None)
    write_atomically(folder / "card.md", lambda file: file.write(text.encode()))


def card_content(curation: Curation) -> dict[str, Any]:
    """Return the card as JSON."""
    scoring, scores = curation.scoring, curation.scores
    after = curation.selection.counts(len(curation.concepts))
    before = np.bincount(curation.sample_concepts, minlength=len(curation.concepts))
    short = {curation.concepts[c]: int(after[c]) for c in np.flatnonzero(after < curation.per_concept)}
    return {
        "pool": {"names": [pool.name for pool in scoring.pools], "rows": scores.rows, "unusable": scores.unusable},
        "prototypes": [{"encoder": p.origin and p.origin.name, **p.provenance} for p in scoring.prototypes],
        "concepts": len(curation.concepts),
        "candidates_per_concept": min(scores.keys.shape[1], scores.rows),
        "search": "exact" if scores.recall is None else "approximate, FAISS IVF-PQ",
        "recall": scores.recall,
        "per_concept": curation.per_concept,
        "filters": curation.filters,
        "selected": len(curation.selection),
        "short": short,
        "coverage": {
            "sample": len(curation.sample_concepts),
            "before": dict(zip(curation.concepts, before.tolist())),
            "after": dict(zip(curation.concepts, after.tolist())),
            "effective_before": effective(before),
            "effective_after": effective(after),
        },
        "licences": licences(curation),
    }


def effective(counts: np.ndarray) -> float:
    """Return the effective number of concepts: the exponential of the entropy of their shares."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def licences(curation: Curation) -> dict[str, int] | None:
    """Return how many selected pairs have each licence; ``None`` where the pool does not tell."""
    if not curation.pool.has("licence"):
        return None
    found = curation.pool.take(curation.selection.rows, "licence")
    return dict(Counter(str(licence or "not stated") for licence in found).most_common())


def _draw_coverage(path: Path, card: Mapping[str, Any]) -> None:
    figure = new_figure(7, 4)
    axis = figure.subplots()
    for key, label in (("before", "the pool"), ("after", "the selection")):
        counts = np.sort(np.array(list(card["coverage"][key].values())))[::-1]
        axis.plot(np.arange(1, len(counts) + 1), counts / max(1, counts.sum()), label=label)
    axis.set(xlabel="concepts, most common first", ylabel="share of pairs", yscale="log", title="Coverage of concepts")
    axis.legend()
    figure.savefig(path, dpi=DPI)


def _draw_scores(path: Path, curation: Curation) -> None:
    figure = new_figure(7, 4)
    axis = figure.subplots()
    parts = {"the pool, best concept": curation.sample_scores, "the selection": curation.selection.scores}
    known = np.concatenate([scores[np.isfinite(scores)] for scores in parts.values()])
    bins = np.linspace(known.min(), known.max() + 1e-6, BINS).tolist()
    for label, scores in parts.items():
        axis.hist(scores[np.isfinite(scores)], bins=bins, density=True, alpha=0.6, label=label)
    axis.set(xlabel="cosine with the prototype", ylabel="density", title="Scores")
    axis.legend()
    figure.savefig(path, dpi=DPI)


def _markdown(card: Mapping[str, Any], sheet: bool) -> str:
    pool, coverage = card["pool"], card["coverage"]
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
        parts += ["## Concepts below their quota", _listed(card["short"], card)]
    if sheet:
        parts += ["## Pictures", "The best of some concepts, from the rarest on.\n\n![Pictures](sheet.jpg)"]
    parts += ["## Licences", _licences(card["licences"])]
    parts += ["## Prototypes", _prototypes(card["prototypes"])]
    return "\n\n".join(parts) + f"\n\nPool: {', '.join(pool['names'])}.\n"


def _summary(card: Mapping[str, Any]) -> str:
    search = card["search"] if card["recall"] is None else f"{card['search']}, recall {card['recall']:.3f}"
    return (
        f"**{card['selected']:,} of {card['pool']['rows']:,} pairs**, for {card['concepts']:,} concepts with at most "
        f"{card['per_concept']:,} each, chosen among the {card['candidates_per_concept']:,} most like each concept "
        f"({search} search), the rarest concept first. {card['pool']['unusable']:,} pairs have no usable vector."
    )


def _listed(short: Mapping[str, int], card: Mapping[str, Any]) -> str:
    names = [f"{name} ({count:,})" for name, count in sorted(short.items(), key=lambda item: item[1])]
    more = f", and {len(names) - MOST_LISTED:,} more" if len(names) > MOST_LISTED else ""
    return (
        f"{len(names):,} concepts have fewer than {card['per_concept']:,} pairs; more candidates or a larger pool may "
        f"help: {', '.join(names[:MOST_LISTED])}{more}."
    )


def _licences(found: Mapping[str, int] | None) -> str:
    if found is None:
        return "The pool does not state the licences of its pairs. Look them up before you publish anything."
    return markdown_table(["licence", "pairs"], [[name, f"{count:,}"] for name, count in found.items()])


def _prototypes(provenance: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for one in provenance:
        examples = list(one.get("examples", {}).values()) or [0]
        skipped = one.get("skipped", [])
        lines.append(
            f"* {one.get('encoder') or 'an unnamed encoder'}, {one.get('modality', 'vectors')}: {min(examples)} to "
            f"{max(examples)} examples a concept; {len(skipped)} could not be read."
        )
    return "\n".join(lines)
