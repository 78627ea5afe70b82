"""ToySettings: what the study does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freezealign.alignment.neighbours import K
from freezealign.modules import LogitScale


@dataclass(frozen=True)
class ToySettings:
    """What the study does. All of it goes into ``toy.json``.

    Args:
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
        seed: Each run has its own, which follows from this one and the number of the run.

    Raises:
        ValueError: If a number is out of range; the message names it.
    """

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
    seed: int = 0

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
