"""What ``fit`` costs on cached features: an epoch against a hand-written loop over tensors in memory.

python benchmarks/training_step.py            # writes benchmarks/RESULTS.md

Both sides train equal projectors by AdamW, clip the gradient and learn the temperature. The loop has what nobody could
leave out: a shuffle, ``cross_entropy`` over all logits, no check, no record, no checkpoint. Random vectors of the
widths of EfficientNet-B0 (1,280) and USE (512), one token an item; an epoch of ``fit`` is all of it, what it sets up
included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from report import ratio, record
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from freezealign import FeatureStore, FreezeAlign, FrozenEncoder
from freezealign.encoders.callable import CallableEncoder

PAIRS, DIM, RATE = 16_384, 512, 1e-3
WIDTHS = {"image": 1280, "text": 512}
REPEATS = 7


def make_model(recipe: str) -> FreezeAlign:
    """A model whose encoders are never called: its features are at hand."""
    encoders = {
        name: FrozenEncoder(CallableEncoder(partial(np.zeros, (1, width)), name, dim=width, fingerprint="random"))
        for name, width in WIDTHS.items()
    }
    return FreezeAlign(encoders, recipe=recipe, dim=DIM, seed=0)


def make_store(model: FreezeAlign, vectors: dict[str, np.ndarray], level: str) -> FeatureStore:
    """Put vectors into a store in memory, as ``extract_features`` would."""
    ones = np.ones(PAIRS, np.int32)
    columns = {"items/ids.utf8": np.full(PAIRS, ord("x"), np.uint8), "items/ids.lengths": ones}
    for name, rows in vectors.items():
        columns[f"items/{name}"] = ones
        if level == "pooled":
            columns[f"{name}/sentence_embedding"] = rows
        else:
            columns |= {f"{name}/token_embeddings": rows, f"{name}/lengths": ones}
    return FeatureStore.from_shards(model.origins(level), [columns])


def loop(model: FreezeAlign, vectors: dict[str, np.ndarray], batch_size: int) -> Callable[[], None]:
    """Return one epoch of the hand-written loop over the same projectors."""
    images, texts = (torch.from_numpy(rows) for rows in vectors.values())
    towers = {name: nn.Sequential(*layers(model, name)) for name in vectors}
    temperature = nn.Parameter(torch.tensor(0.07))
    parameters = [*towers["image"].parameters(), *towers["text"].parameters(), temperature]

    def step(optimizer: torch.optim.Optimizer, index: Tensor) -> None:
        first, second = normalize(towers["image"](images[index])), normalize(towers["text"](texts[index]))
        logits, targets = first @ second.T / temperature, torch.arange(len(index))
        loss = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    def epoch() -> None:
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.02)
        for index in torch.randperm(PAIRS).split(batch_size):
            step(optimizer, index)

    for tower in towers.values():
        tower.train()
    return epoch


def layers(model: FreezeAlign, name: str) -> list[nn.Module]:
    """Return copies of a tower's projections, which map vectors to vectors: with one token, pooling does nothing."""
    blocks = make_model_blocks = model.tower(name).blocks
    found = [getattr(block, "tokens", getattr(block, "projection", None)) for block in make_model_blocks]
    assert blocks
    return [layer for layer in found if layer is not None]


def main() -> None:
    """Measure and write the table."""
    rng = np.random.default_rng(0)
    vectors = {name: rng.standard_normal((PAIRS, width), np.float32) for name, width in WIDTHS.items()}
    for recipe, level in (("pooled", "pooled"), ("token", "tokens")):
        model = make_model(recipe)
        store = make_store(model, vectors, level)
        for B in (256, 1024):
            ep = loop(model, vectors, B)
            f = lambda s: model.fit(s, recipe="paper", epochs=1, batch_size=B, show_progress_bar=False)
            print(recipe, B, ratio(lambda: f(store), ep, 5))
main()
