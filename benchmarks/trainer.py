"""``fit`` on cached features against sentence-transformers' trainer on the very same frozen modules, end to end.

python benchmarks/trainer.py            # writes benchmarks/RESULTS.md

Real encoders, OpenMoji drawings of the training part with English names, drawn as PNG files beforehand. Ours is one
whole call of ``fit``: extraction and every step of every epoch. sentence-transformers encodes anew in every epoch,
which takes too long here: a few of its steps are timed after one to warm up, half of them before ``fit`` and half
after, and their mean is multiplied by the steps of all epochs. Projectors of ``token`` are trained on all 81 patches of
a picture, which no cache spares; those of ``pooled`` on one vector.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from report import record
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesSymmetricRankingLoss
from transformers import TrainerCallback

from freezealign import FreezeAlign
from freezealign.samples import load_openmoji

PAIRS, EPOCHS, BATCH, STEPS = 192, 20, 64, 2
ENCODE_BATCH = 8  # a convolutional encoder on a CPU is fastest while its feature maps fit the cache
ROUTES = {"image": "image", "text": "text"}
ENCODERS = ["efficientnet-lite2", "use-multilingual"]


class TheirTrainer(SentenceTransformerTrainer):
    """Their trainer, which by itself leaves out columns whose features have names it does not know: ``inputs`` here."""

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], None]:
        """Return the features of both columns."""
        columns = [f"{name}_" for name in ROUTES]
        return [{k.removeprefix(c): v for k, v in inputs.items() if k.startswith(c)} for c in columns], None


class Clock(TrainerCallback):
    """Times the steps of sentence-transformers' trainer."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        """Note when a step ended."""
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """What each step took, but for the first."""
        return [after - before for before, after in zip(self.ends, self.ends[1:])]


def write_pairs(folder: Path) -> list[dict[str, str]]:
    """Draw every picture to a file."""
    found = []
    for sample in load_openmoji().train[:PAIRS]:
        path = folder / f"{sample.key}.png"
        sample.image().save(path)
        found.append({"image": str(path), "text": sample.captions["en"]})
    return found


def new_model(recipe: str) -> FreezeAlign:
    """The model of either side."""
    return FreezeAlign(ENCODERS, recipe=recipe, dim=512, seed=0)


def their_steps(recipe: str, pairs: list[dict[str, str]], folder: Path) -> list[float]:
    """Return the seconds of some steps of sentence-transformers' trainer."""
    data, clock = Dataset.from_list(pairs).cast_column("image", Image()), Clock()
    model = new_model(recipe).to_sentence_transformer()
    routes: dict[str, Any] = {"router_mapping": ROUTES, "use_cpu": True}
    options: dict[str, Any] = {"max_steps": STEPS + 1, "per_device_train_batch_size": BATCH, "learning_rate": 1e-3}
    quiet: dict[str, Any] = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    TheirTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(str(folder / "run"), **routes, **options, **quiet),
        train_dataset=data,
        loss=MultipleNegativesSymmetricRankingLoss(model),
        callbacks=[clock],
    ).train()
    return clock.seconds


def our_epochs(recipe: str, pairs: list[dict[str, str]], epochs: int) -> float:
    """Return the seconds of one call of ``fit``."""
    model, start = new_model(recipe), time.perf_counter()
    options = {"batch_size": BATCH, "encode_batch_size": ENCODE_BATCH, "show_progress_bar": False}
    model.fit(pairs, schedule="paper", epochs=epochs, **options)
    return time.perf_counter() - start


def compare(recipe: str, pairs: list[dict[str, str]], folder: Path) -> str:
    """Measure both and return a line of the table."""
    our_epochs(recipe, pairs[:BATCH], 1)  # to warm up
    steps = their_steps(recipe, pairs, folder)
    ours = our_epochs(recipe, pairs, EPOCHS)
    steps += their_steps(recipe, pairs, folder)
    theirs = EPOCHS * (len(pairs) // BATCH) * sum(steps) / len(steps)
    return f"| `{recipe}` | {len(steps)} | {(max(steps) / min(steps) - 1):.0%} | {theirs / ours:.1f} |"


def main() -> None:
    """Measure and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = write_pairs(Path(folder))
        rows = [compare(recipe, pairs, Path(folder)) for recipe in ("token", "pooled")]
    header = (
        f"{EPOCHS} epochs over {PAIRS} pairs, batches of {BATCH}, {' and '.join(ENCODERS)}. `fit` is measured whole, "
        f"extraction included; the other side is extrapolated: {EPOCHS * (PAIRS // BATCH)} steps at the mean of the "
        "measured ones. On `token` what is left is training on every patch, which both sides do; on `pooled` training "
        f"reads one vector an item. With features cached the encoders have a batch size of their own, {ENCODE_BATCH} "
        "here; theirs is that of the step.\n\n"
        "| recipe | their steps measured | which differ by at most | times faster |\n|---|---|---|---|"
    )
    record("Trainer", header, rows)


if __name__ == "__main__":
    torch.set_num_threads(1)  # several wait for each other where others work too
    main()
