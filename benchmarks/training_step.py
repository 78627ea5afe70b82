"""What ``fit`` costs on cached features: an epoch against a hand-written loop over tensors in memory.

python benchmarks/training_step.py            # writes benchmarks/RESULTS.md

Both sides train equal projectors with dropout by AdamW, clip the gradient and learn the temperature. The loop does
nothing else: it shuffles, takes rows and computes ``cross_entropy`` over all logits; no check, no record. An epoch of
``fit`` is a whole call, with what it sets up. Random vectors as wide as those of EfficientNet-B0 and USE.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from report import ratio, record
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from freezealign import FeatureStore, FreezeAlign, FrozenEncoder
from freezealign.encoders.callable import CallableEncoder

PAIRS, DIM, RATE, DECAY, REPEATS = 8_192, 512, 1e-3, 0.02, 5
WIDTHS = {"image": 1280, "text": 512}
Vectors = dict[str, np.ndarray]


def make_model(recipe: str) -> FreezeAlign:
    """A model whose encoders are never called: its features are at hand."""
    encoders = {
        name: FrozenEncoder(CallableEncoder(list, name, dim=width, fingerprint="random vectors"))
        for name, width in WIDTHS.items()
    }
    return FreezeAlign(encoders, recipe=recipe, dim=DIM, seed=0)


def make_store(model: FreezeAlign, level: str, vectors: Vectors) -> FeatureStore:
    """A store in memory, as ``extract_features`` makes it: vectors, or sequences of one token."""
    ones = np.ones(PAIRS, np.int32)
    columns = {"items/ids.utf8": np.full(PAIRS, ord("x"), np.uint8), "items/ids.lengths": ones}
    for name, rows in vectors.items():
        key = "sentence_embedding" if level == "pooled" else "token_embeddings"
        columns |= {f"items/{name}": ones, f"{name}/{key}": rows}
        if level == "tokens":
            columns[f"{name}/lengths"] = ones
    return FeatureStore.from_shards(model.origins(level), [columns])


def projections(model: FreezeAlign, name: str) -> nn.Sequential:
    """Copies of a tower's projections, from vectors to vectors: of one token, pooling takes no mean."""
    blocks = model.tower(name).blocks
    layers = [getattr(block, attribute, None) for block in blocks for attribute in ("tokens", "projection")]
    return nn.Sequential(*(copy.deepcopy(layer) for layer in layers if layer is not None)).train()


def plain_epoch(model: FreezeAlign, vectors: Vectors, batch_size: int) -> Callable[[], None]:
    """Return a function that runs one epoch of the hand-written loop."""
    images, texts = (torch.from_numpy(rows) for rows in vectors.values())
    image, text = (projections(model, name) for name in vectors)
    temperature = nn.Parameter(torch.tensor(0.07))
    parameters = [*image.parameters(), *text.parameters(), temperature]
    targets = torch.arange(batch_size)

    def epoch() -> None:
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
        for index in torch.randperm(PAIRS).split(batch_size):
            first, second = normalize(image(images[index])), normalize(text(texts[index]))
            logits = first @ second.T / temperature
            loss = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

    return epoch


def compare(recipe: str, level: str, where: str, path: Path | None, batch_size: int, vectors: Vectors) -> str:
    """Measure one epoch of both and return a line of the table."""
    model = make_model(recipe)
    store = make_store(model, level, vectors)
    if path is not None:
        store.save(path)
        store = FeatureStore.open(path)
    options = {"epochs": 1, "batch_size": batch_size, "learning_rate": RATE, "show_progress_bar": False}
    times = ratio(
        lambda: model.fit(store, schedule="paper", **options), plain_epoch(model, vectors, batch_size), REPEATS
    )
    return f"| `{recipe}`, {where} | {batch_size:,} | {times:.2f} |"


def main() -> None:
    """Measure and write the table."""
    rng = np.random.default_rng(0)
    vectors = {name: rng.standard_normal((PAIRS, width), np.float32) for name, width in WIDTHS.items()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for batch_size in (256, 1024):
            disk = Path(folder) / str(batch_size)
            rows.append(compare("token", "tokens", "single tokens in memory", None, batch_size, vectors))
            rows.append(compare("pooled", "pooled", "vectors in memory", None, batch_size, vectors))
            rows.append(compare("pooled", "pooled", "vectors on disk", disk, batch_size, vectors))
    header = (
        f"An epoch of `fit` over {PAIRS:,} random pairs of {WIDTHS['image']:,} and {WIDTHS['text']} numbers, "
        f"d = {DIM}, against a hand-written loop over tensors in memory; median of {REPEATS}.\n\n"
        "| recipe and store | batch | times the loop's time |\n|---|---|---|"
    )
    record("Training step", header, rows)


if __name__ == "__main__":
    torch.set_num_threads(1)  # several wait for each other where others work too
    main()
