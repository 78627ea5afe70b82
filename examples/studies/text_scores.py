"""Why CKA, and not a score of texts alone: what predicts which text encoder retrieves pictures best once aligned?

make stamps
python examples/studies/encoder_pairs.py --output study         # first: it trains the pairs
python examples/studies/text_scores.py --output study

Scores the text encoders of the grid on Tux Paint's captions alone: is a caption's translation its nearest neighbour in
another language, and is its nearest neighbour in English of the same category? Compares that, and CKA with the vision
encoders, with retrieval after alignment. Writes texts.csv, texts.json and texts.png, and prints what was found.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_pairs import read_arguments, read_table
from grid import Entry, Grid, load_features, read_grid
from pairs_report import Study, color, spearman
from torch import Tensor
from torch.nn import functional

from freezealign import FeatureStore
from freezealign.samples import Sample
from freezealign.samples.tuxpaint import LANGUAGES, load_tuxpaint

OTHERS = LANGUAGES[1:]
SCORES = {
    "translation_R@1": "translations as neighbours, mean of 13 languages",
    "category": "nearest English caption of the same category",
    "cka": "CKA with the vision encoders",
    "cka_biased": "biased CKA with the vision encoders",
    "mutual_knn": "mutual kNN with the vision encoders",
}
UNIMODAL = ("translation_R@1", "category")
OUTCOMES = {"infonce_t2i_R@10": "InfoNCE", "linear_t2i_R@10": "the closed form"}
MAIN = "infonce_t2i_R@10"
DRAWN = ("translation_R@1", "category", "cka", "mutual_knn")
Row = dict[str, Any]


def main() -> None:
    """Run the study."""
    parser, arguments = read_arguments(__doc__)
    grid, output = read_grid(arguments.grid), arguments.output
    if not (output / "pairs.csv").exists():
        parser.error(
            f"there is no {output / 'pairs.csv'}: run examples/studies/encoder_pairs.py --output {output} first."
        )
    if arguments.data is not None:
        parser.error("the scores need captions in many languages, by category: only Tux Paint has them here.")
    study = Study(read_table(output / "pairs.csv"), grid)
    samples = load_tuxpaint(arguments.stamps).samples
    cache = (arguments.cache or output / "features") / "captions"
    captions = {
        entry.name: Captions(store) for entry, store in zip(grid["text"], caption_features(grid, samples, cache))
    }
    rows = [
        {"text": entry.name, "kind": entry.kind, **text_scores(captions[entry.name], samples), **aligned(study, entry)}
        for entry in grid["text"]
    ]
    print(write(rows, grid, chance(samples), output))


def caption_features(grid: Grid, samples: Sequence[Sample], cache: Path) -> list[FeatureStore]:
    """Return every text encoder's features of all different captions in all languages, called ``LANGUAGE/CAPTION``."""
    named = [(f"{code}/{text}", text) for sample in samples for code, text in sample.captions.items()]
    captions = {name: text for name, text in named if name.split("/")[0] in LANGUAGES}
    # Captions of one length together need no padding.
    data = [{"id": name, "text": text} for name, text in sorted(captions.items(), key=lambda item: len(item[1]))]
    return [candidate.store for candidate in load_features(grid["text"], data, cache, ["text"])]


class Captions:
    """The captions of all languages as unit vectors of one encoder.

    Args:
        store: Its features of captions called ``LANGUAGE/CAPTION``.
    """

    def __init__(self, store: FeatureStore) -> None:
        vectors = store["text"].load(np.arange(len(store)))["sentence_embedding"].float()
        self.vectors = functional.normalize(vectors, dim=-1)
        self.places = {name: place for place, name in enumerate(store.ids)}

    def of(self, language: str, texts: Sequence[str]) -> Tensor:
        """Return the vectors (n, d) of captions in a language."""
        return self.vectors[[self.places[f"{language}/{text}"] for text in texts]]


def text_scores(captions: Captions, samples: Sequence[Sample]) -> dict[str, float]:
    """Return an encoder's scores on captions alone."""
    found = {f"translation_{code}_R@1": translation_recall(captions, samples, code) for code in OTHERS}
    return {
        "translation_R@1": float(np.mean(list(found.values()))),
        "category": category_agreement(captions, samples),
        **found,
    }


def translation_recall(captions: Captions, samples: Sequence[Sample], code: str) -> float:
    """Return for how many different English captions the nearest caption in another language is a translation.

    A translation is what a stamp with that very English caption is called there. A tie counts against the encoder.
    """
    right: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if code in sample.captions:
            right[sample.captions["en"]].add(sample.captions[code])
    english, others = sorted(right), sorted(set().union(*right.values()))
    similarity = captions.of("en", english) @ captions.of(code, others).T
    is_right = torch.tensor([[other in right[text] for other in others] for text in english])
    best_right = similarity.masked_fill(~is_right, -torch.inf).amax(1)
    best_wrong = similarity.masked_fill(is_right, -torch.inf).amax(1)
    return float((best_right > best_wrong).float().mean())


def categories(samples: Sequence[Sample]) -> dict[str, str]:
    """Return the category of each different English caption: the top folder of the first stamp that has it."""
    found: dict[str, str] = {}
    for sample in samples:
        found.setdefault(sample.captions["en"], sample.key.split("/")[0])
    return found


def category_agreement(captions: Captions, samples: Sequence[Sample]) -> float:
    """Return for how many different English captions the nearest other one is of the same category."""
    labels = categories(samples)
    vectors = captions.of("en", list(labels))
    nearest = (vectors @ vectors.T).fill_diagonal_(-torch.inf).argmax(1)
    names = np.array(list(labels.values()))
    return float((names == names[nearest.numpy()]).mean())


def chance(samples: Sequence[Sample]) -> dict[str, float]:
    """Return what the scores of texts read for a random order."""
    counts = np.unique(list(categories(samples).values()), return_counts=True)[1]
    n = counts.sum()
    return {"category": float((counts * (counts - 1)).sum() / (n * (n - 1))), "translation_R@1": 1 / float(n)}


def aligned(study: Study, entry: Entry) -> dict[str, float]:
    """Return the measures and the retrieval of a text encoder with the trained vision encoders, means over folds."""
    j = [text.name for text in study.text].index(entry.name)
    vision = [i for i, other in enumerate(study.vision) if other.kind == "trained"]
    keys = [key for key in SCORES if key not in UNIMODAL] + list(OUTCOMES)
    return {key: float(study.values(key)[:, vision, j].mean()) for key in keys}


def write(rows: Sequence[Row], grid: Grid, chance: dict[str, float], output: Path) -> str:
    """Write ``texts.csv``, ``texts.json`` and ``texts.png`` into a folder and return the findings."""
    with (output / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    subsets = {"all": list(rows), "trained": [row for row in rows if row["kind"] == "trained"]}
    found: Row = {
        "texts": list(rows),
        "chance": chance,
        "correlations": {
            name: {score: {outcome: correlation(some, score, outcome) for outcome in OUTCOMES} for score in SCORES}
            for name, some in subsets.items()
            if len(some) > 2
        },
    }
    found["findings"] = findings(rows, found)
    (output / "texts.json").write_text(json.dumps(found, indent=2, ensure_ascii=False), encoding="utf-8")
    draw(rows, grid, found, output / "texts.png")
    return found["findings"]


def correlation(rows: Sequence[Row], score: str, outcome: str) -> dict[str, Any]:
    """Return Spearman's rank correlation of two columns.

    ``p_value`` is exact: the share of all orders of the encoders that correlate at least as strongly, in either
    direction. ``least`` and ``greatest`` are what it is when one encoder is left out.
    """
    x, y = (np.array([row[key] for row in rows]) for key in (score, outcome))
    rho = float(spearman(x[None], y[None])[0])
    found: dict[str, Any] = {"n": len(x), "rho": rho, "p_value": exact_p(x, y)}
    if len(x) > 3:
        without = [float(spearman(np.delete(x, i)[None], np.delete(y, i)[None])[0]) for i in range(len(x))]
        found |= {"least": min(without), "greatest": max(without)}
    return found


def exact_p(x: np.ndarray, y: np.ndarray) -> float:
    """Return the exact two-sided p-value of a rank correlation; from 20,000 random orders where there are too many."""
    if len(x) <= 8:
        orders = np.array(list(itertools.permutations(range(len(x)))))
    else:
        orders = np.random.default_rng(0).permuted(np.tile(np.arange(len(x)), (20_000, 1)), axis=1)
    values = spearman(np.broadcast_to(x, orders.shape), y[orders])
    return float((np.abs(values) >= abs(spearman(x[None], y[None])[0]) - 1e-9).mean())


def findings(rows: Sequence[Row], found: Row) -> str:
    """Return what was found, as a paragraph computed from the numbers."""
    everything = found["correlations"]["all"]
    n, least_p = len(rows), min(number["p_value"] for score in everything.values() for number in score.values())
    scores = "; ".join(_line(everything, score) for score in SCORES)
    return (
        f"Over {n} text encoders, their retrieval (text-to-image R@10 after InfoNCE, mean of the trained vision "
        f"encoders) correlates in rank with: {scores}. {_orders(rows)} {_versus(found)} With {n} encoders this is "
        "thin: leaving one out moves a correlation as far as the ranges say, the smallest p-value here is "
        f"{least_p:.3f} of {len(SCORES) * len(OUTCOMES)} tests, and two scores whose correlations differ by one "
        "exchange of neighbours cannot be told apart. The categories are labels (the stamps' folders), which CKA does "
        "without."
    )


def _line(numbers: Row, score: str) -> str:
    number = numbers[score][MAIN]
    span = f", {number['least']:+.2f} to {number['greatest']:+.2f} without one" if "least" in number else ""
    return f"{SCORES[score]} {number['rho']:+.2f} (exact p {number['p_value']:.3f}{span})"


def _orders(rows: Sequence[Row]) -> str:
    """Say how each key orders the encoders."""
    keys = {MAIN: "Retrieval", "cka": "CKA", "category": "categories", "translation_R@1": "translations"}
    said = []
    for key, name in keys.items():
        ordered = [f"{row['text']} {row[key]:.3f}" for row in sorted(rows, key=lambda row: -row[key])]
        said.append(f"{name}: {' > '.join(ordered)}")
    return f"The orders are: {'; '.join(said)}."


def _versus(found: Row) -> str:
    """Say whether CKA predicts better than the scores of texts alone, over all encoders and the trained ones."""
    said = []
    for name, numbers in found["correlations"].items():
        rho = {score: numbers[score][MAIN]["rho"] for score in SCORES}
        n, best = numbers["cka"][MAIN]["n"], max(UNIMODAL, key=lambda score: rho[score])
        order = "better than" if rho["cka"] > rho[best] else "worse than"
        if abs(rho["cka"] - rho[best]) < 1e-9:
            order = "exactly as well as"
        tail = "" if order == "better than" else ", so these give no reason for CKA"
        which = f"all {n}" if name == "all" else f"the {n} trained ones"
        said.append(
            f"Over {which}, CKA ({rho['cka']:+.2f}) orders them {order} the better score of texts alone "
            f"({SCORES[best]}, {rho[best]:+.2f}){tail}."
        )
    return " ".join(said)


def draw(rows: Sequence[Row], grid: Grid, found: Row, path: Path) -> None:
    """Draw each score against retrieval, a point a text encoder."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(DRAWN), 4.6), layout="constrained")
    panels = figure.subplots(1, len(DRAWN), sharey=True)
    for axes, score in zip(panels, DRAWN):
        number = found["correlations"]["all"][score][MAIN]
        for j, row in enumerate(rows):
            marker = "o" if row["kind"] == "trained" else "s"
            axes.scatter(row[score], row[MAIN], s=80, marker=marker, color=color(grid["text"], j), label=row["text"])
        if score in found["chance"]:
            axes.axvline(found["chance"][score], color="gray", linestyle=":", linewidth=1, label="random order")
        axes.set_xlabel(SCORES[score])
        title = f"Spearman {number['rho']:+.2f}, exact p {number['p_value']:.3f}, n = {number['n']}"
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        axes.margins(0.12)
    panels[0].set_ylabel("held-out text-to-image R@10\nafter InfoNCE, trained vision encoders")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(rows) + 1, frameon=False
    )
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
