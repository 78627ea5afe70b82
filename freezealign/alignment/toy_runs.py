"""The runs of the toy study: two synthetic spaces, measured, then aligned by training.

Two random non-linear maps see the same latent items, each result gets noise, and two small projectors are trained on
them with the contrastive loss. Source: Maniparambil et al., "Harnessing Frozen Unimodal Encoders for Flexible
Multimodal Alignment", CVPR 2025, which publishes neither n, nor d, nor the maps: those here are our choice, and every
output states them.
"""

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
from freezealign.modules import LogitScale, ProjectionHead
from freezealign.training.losses import ContrastiveLoss

MEASURES = {"cka": "unbiased CKA", "cka_biased": "biased CKA", "mutual_knn": f"mutual {K}-NN"}
OUTCOMES = {"loss": "training loss", "held_out_loss": "held-out loss", "recall_at_1": "held-out R@1"}


@dataclass(frozen=True)
class ToySettings:
    """What the study does. All of it goes into ``toy.json``.

    In the arm ``noise``, the paper's, noise and maps vary. In ``width``, the width of both spaces and of the latent
    items varies, at one level of noise in every dimension. In ``stretch``, an invertible linear map stretches both
    spaces, which takes no information from them and which a linear projector can undo, but to which CKA is not blind.

    Args:
        seed: Each run has its own, which follows from this one and the number of the run.
        train: Pairs to train on; the measures see these.
        held_out: Further pairs, for the held-out loss and R@1.
        dim: Width of the latent items and of both spaces, except in the arm ``width``.
        shared_dim: Width of the shared space.
        iterations: Steps of AdamW, each on all training pairs.
        learning_rate: Of AdamW; its weight decay is 0.01.
        temperature: Of the loss. It is not trained, so that losses of different runs are on one scale.
        noises: Levels of noise in the arm ``noise``, the same for both spaces.
        runs_per_noise: Runs at each; likewise ``runs_per_width`` and ``runs_per_stretch``.
        gains: Range of the gain of a map in the arm ``noise``, drawn log-uniformly for each space. At 0.3 a map is
            almost linear, at 10 almost a sign function.
        widths: Of both spaces and of the latent items in the arm ``width``.
        stretches: Ratios of the largest to the smallest factor in the arm ``stretch``.
        fixed_noise: Level of noise in the arms ``width`` and ``stretch``; ``fixed_gain`` is the gain there.
        resamples: Of the bootstrap over runs.

    Raises:
        ValueError: If a number is out of range; the message names it.
    """

    seed: int = 0
    train: int = 256
    held_out: int = 256
    dim: int = 16
    shared_dim: int = 16
    iterations: int = 500
    learning_rate: float = 0.01
    temperature: float = 0.07
    noises: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    runs_per_noise: int = 6
    gains: tuple[float, float] = (0.3, 10.0)
    widths: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    runs_per_width: int = 3
    stretches: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    runs_per_stretch: int = 5
    fixed_noise: float = 2.0
    fixed_gain: float = 1.0
    resamples: int = 1000

    def __post_init__(self) -> None:
        runs = ("runs_per_noise", "runs_per_width", "runs_per_stretch", "resamples")
        least: dict[int, tuple[str, ...]] = {0: ("iterations", "noises", "fixed_noise"), K + 2: ("train",)}
        least |= {1: ("held_out", "dim", "shared_dim", "widths", "stretches", *runs)}
        for lowest, names in least.items():
            for name in names:
                value = getattr(self, name)
                if min(value if isinstance(value, tuple) else (value,), default=-1) < lowest:
                    raise ValueError(f"{name} must be at least {lowest}, got {value}.")
        if not 0 < self.gains[0] <= self.gains[1] or self.fixed_gain <= 0:
            raise ValueError(f"gains are above 0, the lower one first, got {self.gains} and {self.fixed_gain}.")
        LogitScale(self.temperature)  # raises if it is out of bounds

    @classmethod
    def small(cls, **changes: Any) -> ToySettings:
        """Return settings of a study of seconds, too small to learn from; ``changes`` are other settings."""
        few: dict[str, Any] = {"train": 64, "held_out": 64, "dim": 8, "shared_dim": 8}
        few |= {"iterations": 40, "learning_rate": 0.03, "resamples": 100}
        few |= {"noises": (0.0, 1.0, 4.0), "runs_per_noise": 4}
        few |= {"widths": (8, 64), "runs_per_width": 2, "stretches": (1.0, 10.0), "runs_per_stretch": 2}
        return cls(**few | changes)


@dataclass(frozen=True)
class ToyRun:
    """One run: a row of ``toy.csv``.

    First its number, its arm and its seed; then how the spaces were made, as :func:`make_spaces` takes it. ``cka``,
    unbiased with its 95% interval, ``cka_biased`` and ``mutual_knn`` are of the training pairs before training,
    ``loss`` is of these after it. ``held_out_loss``, which is log(n) of n pairs if all logits are equal, and
    ``recall_at_1``, the mean of both directions, are of the held-out pairs.
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


def make_spaces(
    n: int, dim: int, gains: tuple[float, float], noises: tuple[float, float], stretch: float = 1.0, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return two spaces (n, dim) and (n, dim) that see the same latent items; row i of both is one item.

    The latent items Z are uniform in [-1, 1]. Each space is tanh(gain · √3 · Z Q) P with random rotations Q and P of
    its own, scaled to unit standard deviation, plus noise · uniform [0, 1]. The more gain, the less linear the map; the
    √3 makes a gain that of unit variance. No map loses a dimension, so that without noise both spaces hold all of Z.

    Args:
        n: Items.
        dim: Width.
        gains: Of each map.
        noises: Of each space.
        stretch: Above 1, each space is last rotated at random and its dimensions multiplied by factors from
            stretch^-½ to stretch^½, evenly spaced on a log scale: invertible and linear, and noise is stretched too.
        seed: Of all that is random.
    """
    generator = torch.Generator().manual_seed(seed)
    latent = 2 * torch.rand(n, dim, generator=generator) - 1

    def rotation() -> Tensor:
        return torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]

    def space(gain: float, noise: float) -> Tensor:
        mapped = torch.tanh(gain * 3**0.5 * latent @ rotation()) @ rotation()
        mapped = mapped / mapped.std() + noise * torch.rand(mapped.shape, generator=generator)
        return mapped @ rotation() * stretch ** torch.linspace(-0.5, 0.5, dim) if stretch > 1 else mapped

    first, second = (space(gain, noise) for gain, noise in zip(gains, noises))
    return first, second


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
        losses = [float(criterion(*pairs, scale)) for pairs in (embed(train), held_out)]
        return losses[0], losses[1], recall_at_1(held_out[0] @ held_out[1].T)


def recall_at_1(similarity: Tensor) -> float:
    """Return the share of n pairs whose similarity is above all others, in rows and columns (n, n); a tie is not."""
    right = [(side >= side.diagonal()[:, None]).sum(1) == 1 for side in (similarity, similarity.T)]
    return float(torch.cat(right).double().mean())
