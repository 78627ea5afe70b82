"""One run of the study: make two spaces, measure them, train projectors, and look at the loss."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from freezealign.alignment.cka import linear_cka
from freezealign.alignment.neighbours import K, mutual_knn
from freezealign.alignment.streaming import measure_alignment
from freezealign.alignment.toy.settings import ToySettings
from freezealign.alignment.toy.spaces import make_spaces
from freezealign.evaluation.metrics import positive_ranks
from freezealign.modules import LogitScale, ProjectionHead
from freezealign.training.losses import ContrastiveLoss

MEASURES = {"cka": "unbiased CKA", "cka_biased": "biased CKA", "mutual_knn": f"mutual {K}-NN"}
OUTCOMES = {"loss": "training loss", "held_out_loss": "held-out loss", "recall_at_1": "held-out R@1"}


@dataclass(frozen=True)
class ToyRun:
    """One run: a row of ``toy.csv``.

    First its number, its arm (``noise``, ``width`` or ``stretch``) and its seed; then how the spaces were made, as
    :func:`make_spaces` takes it. ``cka``, unbiased with its 95% interval, ``cka_biased`` and ``mutual_knn`` are of the
    training pairs before training, ``loss`` is of these after it. ``held_out_loss``, which is log(n) of n pairs if all
    logits are equal, and ``recall_at_1``, the mean of both directions, are of the held-out pairs.
    """

    run: int
    arm: str
    seed: int
    dim: int
    stretch: float
    first_gain: float
    second_gain: float
    first_noise: float
    second_noise: float
    cka: float
    cka_low: float
    cka_high: float
    cka_biased: float
    mutual_knn: float
    loss: float
    held_out_loss: float
    recall_at_1: float


COLUMNS = [field.name for field in fields(ToyRun)]


def plan_runs(s: ToySettings) -> list[dict[str, Any]]:
    """Return for each run what it varies: the fields of :class:`ToyRun` that are known before it."""
    levels = [("noise", noise, s.dim, 1.0) for noise in s.noises for _ in range(s.runs_per_noise)]
    levels += [("width", s.fixed_noise, width, 1.0) for width in s.widths for _ in range(s.runs_per_width)]
    levels += [("stretch", s.fixed_noise, s.dim, ratio) for ratio in s.stretches for _ in range(s.runs_per_stretch)]
    plans = []
    for run, (arm, noise, dim, stretch) in enumerate(levels):
        seed, gain_seed = np.random.SeedSequence([s.seed, run]).generate_state(2).tolist()
        gains = [s.fixed_gain] * 2
        if arm == "noise":
            lowest, highest = np.log(s.gains)
            gains = np.exp(np.random.default_rng(gain_seed).uniform(lowest, highest, 2)).tolist()
        plans.append(dict(zip(COLUMNS, (run, arm, seed, dim, stretch, *gains, noise, noise))))
    return plans


def do_run(settings: ToySettings, plan: dict[str, Any]) -> ToyRun:
    """Make the spaces of one run, measure the training pairs, then train."""
    _, _, seed, dim, stretch, *gains_noises = plan.values()
    n = settings.train + settings.held_out
    spaces = make_spaces(n, dim, tuple(gains_noises[:2]), tuple(gains_noises[2:]), stretch, seed=seed)
    first, second = (space[: settings.train] for space in spaces)
    score = measure_alignment(first, second, "cka", permutations=1, seed=seed, show_progress_bar=False)
    biased, neighbours = linear_cka(first, second, unbiased=False), mutual_knn(first, second)
    measured = [score.value, score.low, score.high, biased, neighbours, *train_projectors(*spaces, settings, seed)]
    return ToyRun(*plan.values(), *measured)


def train_projectors(first: Tensor, second: Tensor, settings: ToySettings, seed: int = 0) -> tuple[float, float, float]:
    """Train a linear projector for each space, full batches, and return the :data:`OUTCOMES`.

    Of (n, d) and (n, e), the first ``settings.train`` rows are trained on and the others held out. The state of torch's
    global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = [ProjectionHead(space.shape[1], settings.shared_dim, "linear", 0.0) for space in (first, second)]
    scale, criterion = LogitScale(settings.temperature).requires_grad_(False), ContrastiveLoss()
    optimizer = torch.optim.AdamW([weight for head in heads for weight in head.parameters()], settings.learning_rate)

    def embed(rows: slice) -> list[Tensor]:
        vectors = [head({"sentence_embedding": space[rows]}) for head, space in zip(heads, (first, second))]
        return [functional.normalize(features["sentence_embedding"], dim=-1) for features in vectors]

    train = slice(settings.train)
    for _ in range(settings.iterations):
        optimizer.zero_grad()
        criterion(*embed(train), scale).backward()
        optimizer.step()
    with torch.no_grad():
        held_out = embed(slice(settings.train, None))
        ids = torch.arange(len(held_out[0]))
        ranks = torch.cat([positive_ranks(x, y, ids, ids) for x, y in (held_out, held_out[::-1])])
        losses = [float(criterion(*pairs, scale)) for pairs in (embed(train), held_out)]
    return losses[0], losses[1], float((ranks == 0).double().mean())
