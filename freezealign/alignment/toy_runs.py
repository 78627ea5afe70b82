"""The runs of the toy study: two synthetic spaces, measured, then aligned by training.

Two random non-linear maps see the same latent items, each result gets noise, and two small projectors are trained on
them with the contrastive loss. Source: Maniparambil et al., "Harnessing Frozen Unimodal Encoders for Flexible
Multimodal Alignment", CVPR 2025, which publishes neither n, nor d, nor the maps: those here are our choice, and every
output states them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from freezealign.alignment.cka import linear_cka
from freezealign.alignment.neighbours import K, mutual_knn
from freezealign.alignment.streaming import measure_alignment
from freezealign.modules import LogitScale, ProjectionHead
from freezealign.training.losses import ContrastiveLoss

PLANNED = ["run", "arm", "seed", "dim", "stretch", "first_gain", "second_gain", "first_noise", "second_noise"]
"""What is known of a run before it: its number, its arm, its seed, and how its spaces are made."""
MEASURED = ["cka", "cka_low", "cka_high", "cka_biased", "mutual_knn", "loss", "held_out_loss", "recall_at_1"]
"""What is found: unbiased CKA with its 95% interval, biased CKA and mutual kNN of the training pairs before training;
their loss after it; of the held-out pairs the loss, which is log(n) of n pairs if all logits are equal, and R@1, the
mean of both directions."""
ToyRun = dict[str, Any]
"""A row of ``toy.csv``: PLANNED and MEASURED."""


@dataclass(frozen=True)
class ToySettings:
    """What the study does. All of it goes into ``toy.json``.

    In the arm ``noise``, the paper's, noise and maps vary. In ``width``, the width of both spaces and of the latent
    items varies, at one level of noise in every dimension. In ``stretch``, an invertible linear map stretches both
    spaces, which takes no information from them and which a linear projector can undo, but to which CKA is not blind.

    Raises:
        ValueError: If a number is out of range; the message names it.
    """

    seed: int = 0  # each run has its own, which follows from this one and the number of the run
    train: int = 256  # pairs to train on; the measures see these
    held_out: int = 256  # further pairs, for the held-out loss and R@1
    dim: int = 16  # of the latent items and of both spaces, except in the arm width
    shared_dim: int = 16
    iterations: int = 500  # steps of AdamW, each on all training pairs; its weight decay is 0.01
    learning_rate: float = 0.01
    temperature: float = 0.07  # not trained, so that losses of different runs are on one scale
    noises: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # the same for both spaces
    runs_per_noise: int = 6
    gains: tuple[float, float] = (0.3, 10.0)  # drawn log-uniformly: from almost linear to almost a sign function
    widths: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    runs_per_width: int = 3
    stretches: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)  # ratios of the largest to the smallest factor
    runs_per_stretch: int = 5
    fixed_noise: float = 2.0  # in the arms width and stretch, and so is the gain
    fixed_gain: float = 1.0
    resamples: int = 1000  # of the bootstrap over runs

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


def plan_runs(s: ToySettings) -> list[ToyRun]:
    """Return for each run what it varies: what is PLANNED."""
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
        plans.append(dict(zip(PLANNED, (run, arm, seed, dim, stretch, *gains, noise, noise))))
    return plans


def do_run(settings: ToySettings, plan: ToyRun) -> ToyRun:
    """Make the spaces of one run, measure the training pairs, then train."""
    n, seed = settings.train + settings.held_out, plan["seed"]
    gains, noises = ((plan[f"first_{name}"], plan[f"second_{name}"]) for name in ("gain", "noise"))
    spaces = make_spaces(n, plan["dim"], gains, noises, plan["stretch"], seed=seed)
    first, second = (space[: settings.train] for space in spaces)
    score = measure_alignment(first, second, "cka", permutations=1, seed=seed, show_progress_bar=False)
    biased, neighbours = linear_cka(first, second, unbiased=False), mutual_knn(first, second)
    measured = score.value, score.low, score.high, biased, neighbours, *train_projectors(*spaces, settings, seed)
    return plan | dict(zip(MEASURED, measured))


def make_spaces(
    n: int, dim: int, gains: tuple[float, float], noises: tuple[float, float], stretch: float = 1.0, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return two spaces (n, dim) and (n, dim) that see the same latent items; row i of both is one item.

    The latent items Z are uniform in [-1, 1]. Each space is tanh(gain · √3 · Z Q) P with random rotations Q and P of
    its own, scaled to unit standard deviation, plus noise · uniform [0, 1]. The more gain, the less linear the map; the
    √3 makes a gain that of unit variance. No map loses a dimension, so that without noise both spaces hold all of Z.
    With a ``stretch`` above 1, each space is last rotated at random and its dimensions multiplied by factors from
    stretch^-½ to stretch^½, evenly spaced on a log scale: invertible and linear, and noise is stretched too.
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
    """Train a linear projector for each space, full batches, and return training loss, held-out loss and held-out R@1.

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
        return [normalize(features["sentence_embedding"], dim=-1) for features in vectors]

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
