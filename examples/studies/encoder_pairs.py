"""Does alignment before training predict what training gives? Every pair of a grid of encoders, in five folds.

make stamps
python examples/studies/encoder_pairs.py              # Tux Paint, encoders from the package index, and controls
python examples/studies/encoder_pairs.py --grid examples/studies/grids/paper.json --data captions.jsonl --output study

On the training pairs of a fold, each pair of encoders is measured as it is; then the same projectors are trained on the
same pairs, and evaluated on the fold. Writes pairs.csv (a row a fold and pair), pairs.json and pairs.png, and prints
what was found. A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grid import Grid, load_features, paired, read_grid, stored_encoders
from pairs_report import write_report

from freezealign import FeatureStore, FreezeAlign, RetrievalEvaluator, rank_encoders
from freezealign.alignment.candidates import on_common_items
from freezealign.data.sources import open_pairs
from freezealign.samples import hash_fold, load_tuxpaint
from freezealign.training.losses import ContrastiveLoss

FOLDS, SEED, DIM, KS = 5, 0, 256, (1, 10)
MEASURES = ("cka", "cka_biased", "mutual_knn")
CONTRASTIVE = {"schedule": "paper", "init": "random", "epochs": 30}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {"infonce": ("pooled", CONTRASTIVE), "linear": ("linear", {})}
"""For each way of training the blocks, and the options of ``fit``; the second is the closed form, without any steps."""
Row = dict[str, Any]


def main() -> None:
    """Run the study."""
    _, arguments = read_arguments(__doc__)
    output, grid = arguments.output, read_grid(arguments.grid)
    output.mkdir(parents=True, exist_ok=True)
    table = Table(output / "pairs.csv", settings(arguments))
    pairs = read_pairs(arguments.data, arguments.stamps)
    run(grid, pairs, arguments.cache or output / "features", table)
    print(write_report(table.rows, grid, table.settings, output))


def read_arguments(description: str | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the options that both studies of encoders have, and their parser; torch gets its threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--grid", type=Path, default=here / "grids" / "offline.json", help="the encoders, as JSON")
    parser.add_argument("--stamps", type=Path, default=Path("stamps"), help="folder of the Tux Paint stamps")
    parser.add_argument("--data", help="pairs instead of Tux Paint: any path that 'open_pairs' takes")
    parser.add_argument("--output", type=Path, default=Path("study"), help="folder to write to")
    parser.add_argument("--cache", type=Path, help="folder of these pairs' features; by default in the output")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return parser, arguments


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the rows of a run depend on, as JSON; a run with others does not go on in the same folder."""
    return {
        "data": arguments.data or "Tux Paint stamps, English captions",
        "grid": json.loads(arguments.grid.read_text(encoding="utf-8")),
        "folds": FOLDS,
        "dim": DIM,
        "seed": SEED,
        "training": {way: {"recipe": recipe, "fit": options} for way, (recipe, options) in WAYS.items()},
    }


def read_pairs(data: str | None, stamps: Path) -> Iterable[Row]:
    """Return pairs that can be read again and again: those at a path, or Tux Paint's stamps with English captions."""
    if data is not None:
        return open_pairs(data)
    samples = load_tuxpaint(stamps).samples
    return [{"id": sample.key, "image": sample.image, "text": sample.captions["en"]} for sample in samples]


class Table:
    """The rows of ``pairs.csv``; each is on the disk before the next is computed.

    Args:
        path: The file; rows that are there are kept, but for one cut short.
        settings: What the rows depend on.

    Raises:
        ValueError: If the rows that are there were computed with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings, self.rows = path, settings, []
        beside = path.with_name("settings.json")
        if path.exists() and json.loads(beside.read_text(encoding="utf-8")) != settings:
            raise ValueError(f"{path} was computed with other settings: see {beside}, or choose another --output.")
        beside.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        if path.exists():
            self._keep_whole_lines()
            self.rows = read_table(path)

    def done(self, fold: int) -> set[tuple[str, str]]:
        """Return the pairs whose row of a fold is there."""
        return {(row["vision"], row["text"]) for row in self.rows if row["fold"] == fold}

    def add(self, row: Row) -> None:
        """Append a row."""
        begun = self.path.exists() and self.path.stat().st_size > 0
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if not begun:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append(row)

    def _keep_whole_lines(self) -> None:
        text = self.path.read_bytes()
        self.path.write_bytes(text[: text.rfind(b"\n") + 1])


def read_table(path: Path) -> list[Row]:
    """Return the rows of a CSV file, numbers as numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _number(value: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def run(grid: Grid, pairs: Iterable[Row], cache: Path, table: Table) -> None:
    """Add every row that the table lacks."""
    names = [(image.name, text.name) for image in grid["image"] for text in grid["text"]]
    missing = {fold: [pair for pair in names if pair not in table.done(fold)] for fold in range(FOLDS)}
    if not any(missing.values()):
        return
    candidates = [candidate for entries in grid.values() for candidate in load_features(entries, pairs, cache)]
    stores = {candidate.name: candidate.store for candidate in on_common_items(candidates)}
    ids = next(iter(stores.values())).ids
    folds = np.array([hash_fold(name, FOLDS) for name in ids])
    for fold in range(FOLDS):
        for row in run_fold(grid, stores, folds == fold, missing[fold]):
            table.add({"fold": fold, **row})
            print(f"fold {fold}, {row['vision']} + {row['text']}: {summary(row)}", flush=True)


def run_fold(
    grid: Grid, stores: dict[str, FeatureStore], is_test: np.ndarray, names: Sequence[tuple[str, str]]
) -> Iterator[Row]:
    """Yield the rows of a fold.

    Args:
        grid: All encoders.
        stores: Their features, the same items in one order.
        is_test: (n,) which items are held out.
        names: The pairs to be trained.
    """
    if not names:
        return
    train = {name: store.select(np.flatnonzero(~is_test)) for name, store in stores.items()}
    test = {name: store.select(np.flatnonzero(is_test)) for name, store in stores.items()}
    measured = measure(grid, train)
    for vision, text in names:
        counts = {"n_train": int((~is_test).sum()), "n_test": int(is_test.sum())}
        row = {"vision": vision, "text": text, **counts, **measured[vision, text]}
        for way in WAYS:
            row |= outcomes(way, paired(train[vision], train[text]), paired(test[vision], test[text]))
        yield row


def measure(grid: Grid, stores: dict[str, FeatureStore]) -> dict[tuple[str, str], dict[str, float]]:
    """Return every measure of every pair; what concerns one encoder alone is computed once."""
    image, text = ({entry.name: stores[entry.name] for entry in entries} for entries in grid.values())
    # Neither null nor interval is needed here, so one shuffle and one half are enough.
    ranking = rank_encoders(image, text, metrics=MEASURES, permutations=1, resamples=1, show_progress_bar=False)
    return {(p.vision, p.text): {m: score.value for m, score in p.scores.items()} for p in ranking.pairs}


def outcomes(way: str, train: FeatureStore, test: FeatureStore) -> dict[str, float]:
    """Train projectors on features and return how that went, each key beginning with the way of training."""
    recipe, options = WAYS[way]
    start = time.perf_counter()
    model = FreezeAlign(stored_encoders(train), recipe=recipe, dim=DIM, seed=SEED)
    history = model.fit(train, seed=SEED, show_progress_bar=False, **options)
    found: dict[str, float] = {"seconds": time.perf_counter() - start, "test_loss": held_out_loss(model, test)}
    if history.steps:
        last = history.steps[-1]["epoch"]
        found["train_loss"] = float(np.mean([step["loss"] for step in history.steps if step["epoch"] == last]))
    results = evaluator(test)(model)
    found |= {f"{way}_R@{k}": results[f"{way}_R@{k}"] for way in ("t2i", "i2t") for k in KS}
    return {f"{way}_{key}": value for key, value in found.items()}


@torch.no_grad()
def held_out_loss(model: FreezeAlign, test: FeatureStore) -> float:
    """Return the contrastive loss of all held-out pairs as one batch, at the model's temperature."""
    options = {"convert_to_tensor": True, "show_progress_bar": False}
    images, texts = model.encode_image(test["image"], **options), model.encode_text(test["text"], **options)
    owners = [torch.arange(len(test)).repeat_interleave(torch.from_numpy(test.counts(m))) for m in ("image", "text")]
    return float(ContrastiveLoss()(images, texts, model.logit_scale, *owners))


def evaluator(test: FeatureStore) -> RetrievalEvaluator:
    """Return retrieval among held-out items, by their stored features."""
    texts = test["text"]
    captions = texts.captions(np.arange(len(texts)))
    ends = np.cumsum(test.counts("text"))
    grouped = [captions[start:end] for start, end in zip([0, *ends], ends)]
    retrieval = RetrievalEvaluator(test["image"], grouped, ks=KS, show_progress_bar=False)
    retrieval.texts[""] = texts
    return retrieval


def summary(row: Row) -> str:
    """Return the main numbers of a row."""
    measures = ", ".join(f"{name} {row[name]:.3f}" for name in MEASURES)
    ways = ", ".join(f"{way} R@10 {row[f'{way}_t2i_R@10']:.3f}" for way in WAYS)
    return f"{measures}; {ways}; {sum(row[f'{way}_seconds'] for way in WAYS):.1f} s"


if __name__ == "__main__":
    main()
