"""Every recipe on the same five folds of Tux Paint, and on OpenMoji: retrieval of held-out pictures in 14 languages.

python benchmarks/quality.py --stamps stamps            # 'make stamps' fetches them

Trained on English captions only. Nothing was chosen on the held-out folds; how it was chosen is in docs/recipes.md.
Frozen features are computed once and kept in the user's cache.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from report import record

from freezealign import FeatureStore, FreezeAlign, FrozenEncoder, RetrievalEvaluator
from freezealign.demo.demo import feature_cache
from freezealign.samples import Sample, SampleSet, load_openmoji
from freezealign.samples.tuxpaint import LANGUAGES, load_tuxpaint
from freezealign.space.recipes import as_encoder

DIM, FOLDS = 512, 5
TRAINED = {"schedule": "paper", "init": "random"}


@dataclass
class Method:
    """A row of the table.

    Args:
        name: What it is called there.
        recipe: The model's blocks.
        fit: Options of ``fit``.
        data: From the model, the training pairs and the other data set's pairs to what it is trained on.
        images: The image encoders, side by side where there are several.
    """

    name: str
    recipe: str = "auto"
    fit: dict[str, Any] = field(default_factory=dict)
    data: Callable[[FreezeAlign, FeatureStore, FeatureStore], Any] = lambda model, train, other: train
    images: tuple[str, ...] = ("efficientnet-lite2",)


METHODS = [
    Method("default `fit`: kernel, closed form"),
    Method(
        "default, three image encoders: EfficientNet-Lite0, 1 and 2",
        images=("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"),
    ),
    Method("`linear`, closed form", "linear"),
    Method("`token` (paper's blocks), closed form", "token"),
    Method("`relative` (ASIF), training-free", "relative"),
    Method("`pooled`, InfoNCE, 30 epochs", "pooled", {**TRAINED, "epochs": 30, "learning_rate": 3e-4}),
    Method("`glu`, InfoNCE, 30 epochs", "glu", {**TRAINED, "epochs": 30, "learning_rate": 3e-4}),
    Method("`glu`, sigmoid, 30 epochs (SAIL-like)", "glu", {**TRAINED, "epochs": 30, "loss": "sigmoid"}),
    Method("`linear`, closed form, then 30 epochs", "linear", {"epochs": 30, "learning_rate": 3e-5}),
    Method(
        "`linear`, closed form, then 30 epochs with structure loss",
        "linear",
        {"epochs": 30, "learning_rate": 3e-5, "structure_weight": 10.0},
    ),
    Method(
        "default + the other data set, weight 0.1",
        fit={"weights": (1.0, 0.1)},
        data=lambda model, train, other: [train, other],
    ),
    Method(
        "default + the encoder's 1,000 ImageNet class names",
        fit={"class_names": True},
    ),
    Method("`token`, the paper's training, 20 epochs", "token", TRAINED),
]


class Bench:
    """The encoders and their features of one data set.

    Args:
        encoders: The frozen encoders, loaded once.
        samples: The data set; any fold of it, as all samples are used.
    """

    def __init__(self, encoders: dict[str, FrozenEncoder], samples: SampleSet) -> None:
        self.encoders, self.languages = encoders, LANGUAGES if samples.name.startswith("Tux") else samples.languages
        model = self.model("auto")
        cache = feature_cache(model, samples) / "quality"
        data = [{"image": sample.image, "text": sample.captions["en"], "id": sample.key} for sample in samples.samples]
        self.stores = {
            level: model.extract_features(data, cache / level, level=level, reuse=True, batch_size=8)
            for level in ("tokens", "pooled")
        }
        by_key = {sample.key: sample for sample in samples.samples}
        self.samples = [by_key[key] for key in self.stores["tokens"].ids]
        captions = {code: [sample.captions.get(code) for sample in self.samples] for code in self.languages}
        self.texts = RetrievalEvaluator(self.stores["tokens"]["image"], captions).precompute(model, cache / "captions")

    def model(self, recipe: str) -> FreezeAlign:
        """Return an untrained model."""
        return FreezeAlign(self.encoders, recipe=recipe, dim=DIM, seed=0)

    def evaluator(self, chosen: np.ndarray) -> RetrievalEvaluator:
        """Return retrieval among some of the samples."""
        captions = {code: [self.samples[i].captions.get(code) for i in chosen] for code in self.languages}
        evaluator = RetrievalEvaluator(self.stores["tokens"].select(chosen)["image"], captions, show_progress_bar=False)
        places = {item: place for place, item in enumerate(chosen.tolist())}
        for code in self.languages:
            rows = [row for row, owner in enumerate(self.texts.owners[code]) if owner in places]
            evaluator.texts[code] = self.texts.texts[code][rows]
        return evaluator


def scores(bench: Bench, method: Method, train: FeatureStore, other: FeatureStore, evaluator: Any) -> dict[str, float]:
    """Train one model and return its scores and the half-widths of their intervals."""
    model = bench.model(method.recipe)
    model.fit(method.data(model, train, other), show_progress_bar=False, **method.fit)
    results, found = evaluator(model), {}
    for k in (1, 10):
        metric = f"en_t2i_R@{k}"
        found[f"en{k}"] = results[metric]
        found[f"en{k}±"] = (results[f"{metric}_high"] - results[f"{metric}_low"]) / 2
        found[f"others{k}"] = float(np.mean([results[f"{code}_t2i_R@{k}"] for code in bench.languages[1:]]))
    return found


def row(method: Method, folds: list[dict[str, float]]) -> str:
    """Return a line of the table: means over folds; the interval of a mean of independent folds."""
    mean = {key: float(np.mean([fold[key] for fold in folds])) for key in folds[0]}
    half = {k: math.hypot(*(fold[f"en{k}±"] for fold in folds)) / len(folds) for k in (1, 10)}
    english = " | ".join(f"{mean[f'en{k}']:.3f} ± {half[k]:.3f}" for k in (1, 10))
    return f"| {method.name} | {english} | {mean['others1']:.3f} | {mean['others10']:.3f} |"


def main() -> None:
    """Measure every method on both data sets and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, default=Path("stamps"), help="folder of the Tux Paint stamps")
    folder = parser.parse_args().stamps
    stamps, moji = [load_tuxpaint(folder, fold) for fold in range(FOLDS)], load_openmoji()
    text, benches = FrozenEncoder("use-multilingual"), {}
    for images in {method.images: None for method in METHODS}:
        encoders = {"image": as_encoder(images, "image"), "text": text}
        benches[images] = Bench(encoders, stamps[0]), Bench(encoders, moji)
    tables: dict[str, list[str]] = {}
    for place, (title, splits) in enumerate(
        {"Tux Paint, mean of five folds": stamps, "OpenMoji, held-out fifth": [moji]}.items()
    ):
        lines = tables.setdefault(title, [])
        for method in METHODS:
            bench, other = benches[method.images][place], benches[method.images][1 - place]
            level = "tokens" if method.recipe == "token" else "pooled"
            folds = [_fold(bench, method, _held_out(bench.samples, split), other, level) for split in splits]
            lines.append(row(method, folds))
            print(lines[-1], flush=True)
    header = (
        "Text-to-image retrieval of held-out pictures, trained on English captions only; EfficientNet-Lite2 and "
        "Universal Sentence Encoder, d = 512, seed 0; ± is half the 95% bootstrap interval over held-out pictures. "
        "Protocol: cosine; a tie counts against the model; missing captions are left out.\n\n"
        "| method | en R@1 | en R@10 | 13 others R@1 | 13 others R@10 |\n|---|---|---|---|---|"
    )
    record("Quality of every recipe", header, tables)


def _held_out(samples: list[Sample], split: SampleSet) -> np.ndarray:
    return np.array([split.is_test(sample) for sample in samples])


def _fold(bench: Bench, method: Method, test: np.ndarray, other: Bench, level: str) -> dict[str, float]:
    train = bench.stores[level].select(~test)
    return scores(bench, method, train, other.stores[level], bench.evaluator(np.flatnonzero(test)))


if __name__ == "__main__":
    main()
