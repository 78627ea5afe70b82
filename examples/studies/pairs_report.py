"""What the rows of ``encoder_pairs.py`` say: rank correlations, controls, a figure and a paragraph."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from grid import Entry, Grid
from scipy.stats import rankdata

Row = dict[str, Any]
MEASURES = {"cka": "CKA", "cka_biased": "biased CKA", "mutual_knn": "mutual kNN"}
WAYS = {"infonce": "InfoNCE", "linear": "closed form"}
RESULTS = ("train_loss", "test_loss", "t2i_R@1", "t2i_R@10", "i2t_R@1", "i2t_R@10")
MAIN = "infonce_t2i_R@10"
RESAMPLES, SEED = 2000, 0
KINDS = {
    "trained": ("o", "both trained"),
    "vision untrained": ("^", "random vision encoder"),
    "text untrained": ("s", "random or control text encoder"),
    "untrained": ("X", "neither trained"),
}


def write_report(rows: Sequence[Row], grid: Grid, settings: dict[str, Any], output: Path) -> str:
    """Write ``pairs.json`` and ``pairs.png`` into a folder and return the findings."""
    study = Study(rows, grid)
    found = {
        "settings": settings,
        "pairs": study.means(),
        "correlations": study.correlations(),
        "trained_above_random": study.trained_above_random(),
        "agreement_among_trained": {measure: study.agreement(measure) for measure in MEASURES},
        "worst_mistake": {measure: study.worst_mistake(measure) for measure in MEASURES},
        "first_choice": {measure: study.first_choice(measure) for measure in MEASURES},
        "seconds": {way: float(np.mean([row[f"{way}_seconds"] for row in rows])) for way in WAYS},
    }
    found["findings"] = findings(study, found)
    (output / "pairs.json").write_text(json.dumps(found, indent=2, ensure_ascii=False), encoding="utf-8")
    draw(study, found, output / "pairs.png")
    return found["findings"]


class Study:
    """The rows as one array over folds, vision encoders and text encoders.

    Args:
        rows: One a fold and pair, all of them.
        grid: The encoders.
    """

    def __init__(self, rows: Sequence[Row], grid: Grid) -> None:
        self.grid, self.vision, self.text = grid, grid["image"], grid["text"]
        self.folds = sorted({row["fold"] for row in rows})
        by_key = {(row["fold"], row["vision"], row["text"]): row for row in rows}
        self.rows = [[[by_key[f, v.name, t.name] for t in self.text] for v in self.vision] for f in self.folds]
        self.outcomes = [f"{way}_{result}" for way in WAYS for result in RESULTS if f"{way}_{result}" in rows[0]]

    def values(self, key: str) -> np.ndarray:
        """Return a column (folds, vision encoders, text encoders)."""
        return np.array([[[row[key] for row in line] for line in fold] for fold in self.rows])

    def means(self) -> list[Row]:
        """Return for each pair the mean over folds of every column."""
        keys = [*MEASURES, *self.outcomes]
        columns = {key: self.values(key).mean(0) for key in keys}
        return [
            {"vision": v.name, "text": t.name, "kind": kind(v, t), **{key: float(columns[key][i, j]) for key in keys}}
            for i, v in enumerate(self.vision)
            for j, t in enumerate(self.text)
        ]

    def subsets(self) -> dict[str, tuple[list[int], list[int]]]:
        """Return which vision and which text encoders the correlations are taken over, by name."""
        trained = tuple([i for i, entry in enumerate(side) if entry.kind == "trained"] for side in self.grid.values())
        vision, text = list(range(len(self.vision))), list(range(len(self.text)))
        chosen = {"all pairs": (vision, text), "trained encoders only": trained}
        chosen |= {f"text {entry.name}": (vision, [j]) for j, entry in enumerate(self.text)}
        chosen |= {f"vision {entry.name}": ([i], text) for i, entry in enumerate(self.vision)}
        return {name: sides for name, sides in chosen.items() if len(sides[0]) * len(sides[1]) > 2}

    def correlations(self) -> dict[str, Any]:
        """Return for each subset, measure and outcome Spearman's rank correlation, with intervals."""
        return {
            name: {
                measure: {key: self.correlation(measure, key, *sides) for key in self.outcomes} for measure in MEASURES
            }
            for name, sides in self.subsets().items()
        }

    def correlation(self, measure: str, outcome: str, vision: list[int], text: list[int]) -> dict[str, Any]:
        """Return the rank correlation of two columns' means over folds.

        ``low`` and ``high`` are the 95% percentile bootstrap over pairs. Pairs that share an encoder are not
        independent: ``low_encoders`` and ``high_encoders`` draw vision and text encoders instead, each side on its own.
        Source: Owen 2007, "The pigeonhole bootstrap" (Annals of Applied Statistics 1).
        """
        by_fold = [self.values(key)[:, vision][:, :, text] for key in (measure, outcome)]
        x, y = (values.mean(0) for values in by_fold)
        rng = np.random.default_rng(SEED)
        pairs = rng.integers(x.size, size=(RESAMPLES, x.size))
        rows = rng.integers(len(vision), size=(RESAMPLES, len(vision)))
        columns = rng.integers(len(text), size=(RESAMPLES, len(text)))
        grids = (rows[:, :, None] * len(text) + columns[:, None, :]).reshape(RESAMPLES, -1)
        found: dict[str, Any] = {"n": x.size, "rho": float(spearman(x.reshape(1, -1), y.reshape(1, -1))[0])}
        found["by_fold"] = spearman(*(values.reshape(len(values), -1) for values in by_fold)).tolist()
        for suffix, drawn in (("", pairs), ("_encoders", grids)):
            found[f"low{suffix}"], found[f"high{suffix}"] = interval(spearman(x.ravel()[drawn], y.ravel()[drawn]))
        return found

    def trained_above_random(self) -> dict[str, Any]:
        """Return how often a random encoder is above the trained one of its architecture, with a trained partner."""
        return {
            key: {"of": len(self.comparisons()), "violations": [len(self.violations(key, f)) for f in self.folds]}
            | {"where": {str(fold): where for fold in self.folds if (where := self.violations(key, fold))}}
            for key in (*MEASURES, MAIN)
        }

    def comparisons(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Return the positions of pairs that differ in one encoder being trained or random, the other one trained."""
        found = []
        for i, v in enumerate(self.vision):
            for j, t in enumerate(self.text):
                if v.kind == t.kind == "trained":
                    found += [((i, j), (k, j)) for k, other in enumerate(self.vision) if other.random_of == v.name]
                    found += [((i, j), (i, k)) for k, other in enumerate(self.text) if other.random_of == t.name]
        return found

    def violations(self, key: str, fold: int) -> list[str]:
        """Return which pairs with a random encoder are not below that with the trained one in a fold."""
        values = self.values(key)[self.folds.index(fold)]
        return [self.pair(*random) for trained, random in self.comparisons() if values[random] >= values[trained]]

    def pair(self, i: int, j: int) -> str:
        """Return a pair in words."""
        return f"{self.vision[i].name} + {self.text[j].name}"

    def agreement(self, measure: str) -> dict[str, float]:
        """Return how often a measure and retrieval put two pairs of trained encoders in one order, fold by fold.

        The two differ in their vision encoder alone, or in their text encoder alone; a tie counts half.
        """
        trained = np.ix_(range(len(self.folds)), *self.subsets()["trained encoders only"])
        x, y = (self.values(key)[trained] for key in (measure, MAIN))
        found = {}
        for axis, side in ((1, "vision"), (2, "text")):
            first, second = np.triu_indices(x.shape[axis], 1)
            signs = [np.sign(v.take(first, axis) - v.take(second, axis)) for v in (x, y)]
            same = (1 + signs[0] * signs[1]) / 2
            found |= {side: float(same.mean()), f"{side}_of": same.size} if same.size else {}
        return found

    def worst_mistake(self, measure: str) -> dict[str, Any]:
        """Return the two pairs that a measure puts in the wrong order and whose retrieval differs most, if any."""
        x, y = (self.values(key).mean(0).ravel() for key in (measure, MAIN))
        lost = np.where(x[:, None] > x[None], y[None] - y[:, None], 0)
        above, below = np.unravel_index(lost.argmax(), lost.shape)
        if lost[above, below] <= 0:
            return {}
        said = {"above": above, "below": below}
        return {
            place: {"pair": self.pair(*divmod(int(i), len(self.text))), measure: float(x[i]), MAIN: float(y[i])}
            for place, i in said.items()
        }

    def first_choice(self, measure: str) -> dict[str, Any]:
        """Return what retrieval the pair reaches that a measure puts first on a fold's training pairs."""
        scores, reached = self.values(measure), self.values(MAIN)
        places = [np.unravel_index(fold.argmax(), fold.shape) for fold in scores]
        trained = np.ix_(range(len(self.folds)), *self.subsets()["trained encoders only"])
        return {
            "pairs": [self.pair(int(i), int(j)) for i, j in places],
            MAIN: float(np.mean([fold[place] for fold, place in zip(reached, places)])),
            "best": float(reached.max((1, 2)).mean()),
            "mean of trained pairs": float(reached[trained].mean()),
        }


def kind(vision: Entry, text: Entry) -> str:
    """Return which of :data:`KINDS` a pair is."""
    untrained = vision.kind != "trained", text.kind != "trained"
    return list(KINDS)[untrained[0] + 2 * untrained[1]]


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of each row of x (B, n) with the row of y; NaN where one is constant."""
    x, y = (rankdata(side, axis=1) for side in (x, y))
    x, y = (side - side.mean(1, keepdims=True) for side in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the central 95% of values, without NaN."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


# Findings


def findings(study: Study, found: dict[str, Any]) -> str:
    """Return what was found, as a paragraph computed from the numbers."""
    sentences = [
        _prediction(found, "all pairs", "Over all {n} pairs"),
        _prediction(found, "trained encoders only", "Among the {n} pairs of trained encoders only"),
        _verdict(found),
        _within(study, found),
        *(_above_random(found, measure) for measure in MEASURES),
        _liked_controls(study),
        *(_mistake(found, measure) for measure in MEASURES),
        _choice(found),
    ]
    return " ".join(filter(None, sentences))


def _prediction(found: dict[str, Any], subset: str, beginning: str) -> str:
    numbers = found["correlations"][subset]
    parts = [f"{name} {_interval(numbers[measure][MAIN])}" for measure, name in MEASURES.items()]
    held_out, training = (
        _listed([f"{name} {numbers[measure][f'infonce_{loss}']['rho']:+.2f}" for measure, name in MEASURES.items()])
        for loss in ("test_loss", "train_loss")
    )
    n = numbers["cka"][MAIN]["n"]
    return (
        f"{beginning.format(n=n)}, the rank correlation with held-out text-to-image R@10 after InfoNCE is "
        f"{_listed(parts)}; with the held-out loss {held_out}; with the loss at the end of training {training}."
    )


def _interval(number: dict[str, Any]) -> str:
    over_encoders = f"{number['low_encoders']:+.2f} to {number['high_encoders']:+.2f}"
    return (
        f"{number['rho']:+.2f} (95% {number['low']:+.2f} to {number['high']:+.2f} over pairs, {over_encoders} "
        "over encoders)"
    )


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _verdict(found: dict[str, Any]) -> str:
    trained = found["correlations"]["trained encoders only"]["cka"][MAIN]
    n = trained["n"]
    if trained["rho"] <= 0:
        return f"So the claim fails where it matters most: among {n} trained pairs CKA does not put the better first."
    folds = ", ".join(f"{rho:+.2f}" for rho in trained["by_fold"])
    if trained["low_encoders"] <= 0:
        return (
            f"Among trained encoders alone CKA's order is not established, whatever it reads (by fold {folds}): the "
            f"{n} pairs rest on a few encoders a side, and the interval over encoders, which counts that, includes 0."
        )
    return f"So CKA orders the {n} trained pairs as well (by fold {folds}), not only trained against untrained ones."


def _within(study: Study, found: dict[str, Any]) -> str:
    said = []
    for held, other, modality in (("text", "vision", "text"), ("vision", "text", "image")):
        names = [f"{held} {entry.name}" for entry in study.grid[modality]]
        rho = [found["correlations"][name]["cka"][MAIN]["rho"] for name in names if name in found["correlations"]]
        if rho:
            over = f"CKA's correlation over the {other} encoders is {min(rho):+.2f} to {max(rho):+.2f}"
            said.append(f"With the {held} encoder held fixed, {over}.")
    return " ".join([*said, _agreement(found)])


def _agreement(found: dict[str, Any]) -> str:
    numbers = found["agreement_among_trained"]["cka"]
    parts = [
        f"{numbers[side]:.0%} of {numbers[f'{side}_of']} comparisons that differ in the {side} encoder alone"
        for side in ("vision", "text")
        if side in numbers
    ]
    return f"Among trained encoders, fold by fold, CKA and retrieval agree in {_listed(parts)} (chance 50%)."


def _above_random(found: dict[str, Any], measure: str) -> str:
    counts = found["trained_above_random"][measure]
    total, name = sum(counts["violations"]), MEASURES[measure]
    name = name[0].upper() + name[1:]
    if not counts["of"]:
        return ""
    folds = f"{counts['of']} comparisons a fold, {len(counts['violations'])} folds"
    if not total:
        return f"{name} puts every trained encoder above its architecture with random weights in every fold ({folds})."
    where = sorted({pair for pairs in counts["where"].values() for pair in pairs})
    return f"{name} puts a random encoder above its trained one {total} times ({folds}): {_listed(where)}."


def _liked_controls(study: Study) -> str:
    """Say what untrained text encoders read and reach with trained vision encoders."""
    trained, texts = study.subsets()["trained encoders only"]
    untrained = [j for j in range(len(study.text)) if j not in texts]
    if not untrained:
        return ""
    said = []
    for j in untrained:
        values = {key: study.values(key).mean(0)[trained, j].mean() for key in (*MEASURES, MAIN)}
        measures = _listed([f"{name} {values[key]:.3f}" for key, name in MEASURES.items()])
        said.append(f"{study.text[j].name} reads {measures} and still reaches R@10 {values[MAIN]:.3f}")
    least = {key: study.values(key).mean(0)[np.ix_(trained, texts)].min() for key in (*MEASURES, MAIN)}
    measures = _listed([f"{name} {least[key]:.3f}" for key, name in MEASURES.items()])
    return (
        f"With trained vision encoders (means), {_listed(said)}; the least of any pair of trained encoders is "
        f"{measures}, and R@10 {least[MAIN]:.3f}."
    )


def _mistake(found: dict[str, Any], measure: str) -> str:
    mistake = found["worst_mistake"][measure]
    pairs = [f"{pair['pair']} ({pair[measure]:.3f}, R@10 {pair[MAIN]:.3f})" for pair in mistake.values()]
    return f"The worst mistake of {MEASURES[measure]} is {' above '.join(pairs)}." if pairs else ""


def _choice(found: dict[str, Any]) -> str:
    choices = found["first_choice"]
    parts = [f"{name}'s first choice reaches R@10 {choices[m][MAIN]:.3f}" for m, name in MEASURES.items()]
    cka = choices["cka"]
    return (
        f"Chosen on the training pairs of each fold, {_listed(parts)}; the best pair in hindsight {cka['best']:.3f}, "
        f"the mean of the trained pairs {cka['mean of trained pairs']:.3f}."
    )


# Figure


def draw(study: Study, found: dict[str, Any], path: Path) -> None:
    """Draw CKA and mutual kNN against held-out retrieval and loss, a point a pair."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 10.5), layout="constrained")
    panels = figure.subplots(2, 2)
    outcomes = {MAIN: "held-out text-to-image R@10", "infonce_test_loss": "held-out contrastive loss"}
    for row, (outcome, what) in zip(panels, outcomes.items()):
        for axes, measure in zip(row, ("cka", "mutual_knn")):
            _scatter(axes, study, measure, outcome)
            axes.set_xlabel(f"{MEASURES[measure]} of the frozen encoders, training pairs")
            axes.set_ylabel(f"{what} after InfoNCE")
            axes.set_title(_title(found, measure, outcome), fontsize=10)
    handles = _handles(study)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False)
    figure.savefig(path, dpi=110)


def _title(found: dict[str, Any], measure: str, outcome: str) -> str:
    everything, trained = (
        found["correlations"][name][measure][outcome] for name in ("all pairs", "trained encoders only")
    )
    return (
        f"Spearman {everything['rho']:+.2f} [{everything['low']:+.2f}, {everything['high']:+.2f}] over all "
        f"{everything['n']} pairs, {trained['rho']:+.2f} among {trained['n']} trained"
    )


def _scatter(axes: Any, study: Study, measure: str, outcome: str) -> None:
    x, y = study.values(measure).mean(0), study.values(outcome).mean(0)
    for i, v in enumerate(study.vision):
        for j, t in enumerate(study.text):
            marker = KINDS[kind(v, t)][0]
            axes.scatter(x[i, j], y[i, j], s=55, color=color(study.text, j), marker=marker, alpha=0.85, linewidth=0)
    _label(axes, study, x, y)
    axes.grid(alpha=0.25)
    axes.margins(0.08)


def _label(axes: Any, study: Study, x: np.ndarray, y: np.ndarray) -> None:
    """Write the vision encoder's label to the right of each point, where no other point is in the way."""
    width, height = np.ptp(x) / 15, np.ptp(y) / 40
    for i, j in np.ndindex(x.shape):
        ahead = (x > x[i, j]) & (x < x[i, j] + width) & (abs(y - y[i, j]) < height)
        behind = (x <= x[i, j]) & (x > x[i, j] - width / 2) & (abs(y - y[i, j]) < height)
        if not ahead.any() and behind.sum() <= 2:
            label = study.vision[i].label or study.vision[i].name
            place = {"xytext": (6, -3), "textcoords": "offset points"}
            axes.annotate(label, (x[i, j], y[i, j]), fontsize=8, color=color(study.text, j), **place)


def color(entries: Sequence[Entry], j: int) -> Any:
    """Return the colour of an encoder: greys where it is untrained."""
    import matplotlib

    if entries[j].kind != "trained":
        untrained = [k for k, entry in enumerate(entries) if entry.kind != "trained"]
        return ("black", "gray", "silver")[untrained.index(j) % 3]
    return matplotlib.colormaps["tab10"](j)


def _handles(study: Study) -> list[Any]:
    from matplotlib.lines import Line2D

    point: Callable[..., Line2D] = lambda **options: Line2D([], [], linestyle="", markersize=8, **options)  # noqa: E731
    texts = [point(marker="D", color=color(study.text, j), label=t.name) for j, t in enumerate(study.text)]
    present = {kind(v, t) for v in study.vision for t in study.text}
    kinds = [
        point(marker=marker, color="dimgray", fillstyle="none", label=words)
        for name, (marker, words) in KINDS.items()
        if name in present
    ]
    return [*texts, *(kinds if len(kinds) > 1 else [])]
