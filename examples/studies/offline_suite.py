"""The suite "offline" on real encoders: a multilingual and an English-only text encoder, and two controls.

python examples/studies/offline_suite.py --stamps stamps --output suite-output    # 'make stamps' fetches them

Every model is trained on the English captions of four folds of the Tux Paint stamps and tested on the fifth; the
controls are the same model untrained, and trained on captions that were shuffled among the pictures. Finished models
and tasks are kept: after an interruption, run it again.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

from freezealign import FreezeAlign
from freezealign.evaluation.suites import run_suite
from freezealign.samples import SampleSet, load_tuxpaint, pairs

IMAGE_ENCODER, MULTILINGUAL, ENGLISH = "efficientnet-lite2", "use-multilingual", "all-minilm-l6-v2"
BATCH_SIZE = 8  # a convolutional encoder on a CPU is fastest while its feature maps fit the cache


@dataclass
class Entry:
    """A model of the study.

    Args:
        text: Its text encoder.
        recipe: Its blocks.
        training: ``pairs``, ``shuffled`` or ``none``.
    """

    text: str
    recipe: str = "auto"
    training: str = "pairs"


ENTRIES = {
    "multilingual": Entry(MULTILINGUAL),
    "multilingual-linear": Entry(MULTILINGUAL, "linear"),
    "multilingual-token": Entry(MULTILINGUAL, "token"),
    "english-only": Entry(ENGLISH),
    "untrained": Entry(MULTILINGUAL, "token", "none"),
    "shuffled": Entry(MULTILINGUAL, training="shuffled"),
}


def train(entry: Entry, samples: SampleSet, folder: Path) -> FreezeAlign:
    """Return the trained model of an entry, from ``folder`` if it is there already."""
    if (folder / "modules.json").is_file():
        return FreezeAlign.from_pretrained(folder)
    model = FreezeAlign([IMAGE_ENCODER, entry.text], recipe=entry.recipe, dim=512, seed=0)
    if entry.training != "none":
        data = pairs(samples.train)
        if entry.training == "shuffled":
            texts = [pair["text"] for pair in data]
            random.Random(0).shuffle(texts)
            data = [{**pair, "text": text} for pair, text in zip(data, texts)]
        level = "tokens" if entry.recipe == "token" else "pooled"
        model.fit(model.extract_features(data, level=level, batch_size=BATCH_SIZE), seed=0)
    model.save_pretrained(folder)
    return model


def main() -> None:
    """Train and evaluate every model; write one report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, default=Path("stamps"), help="folder of the Tux Paint stamps")
    parser.add_argument("--output", type=Path, default=Path("suite-output"), help="folder for models and results")
    parser.add_argument("--only", nargs="*", choices=list(ENTRIES), help="only these models")
    options = parser.parse_args()
    samples = load_tuxpaint(options.stamps, fold=0)
    for name in options.only or ENTRIES:
        print(f"== {name}", flush=True)
        model = train(ENTRIES[name], samples, options.output / "models" / name)
        root = options.stamps.resolve().parent
        run_suite(
            model,
            "offline",
            options.output / "results",
            name=name,
            root=root,
            batch_size=BATCH_SIZE,
            announce=lambda line: print(line, flush=True),
            show_progress_bar=False,
        )
    print(f"Saved {options.output}/results: report.md, report.html")


if __name__ == "__main__":
    main()
