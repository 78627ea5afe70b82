"""Two synthetic spaces of the same latent items."""

from __future__ import annotations

import torch
from torch import Tensor


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
    first, second = (_space(latent, gain, noise, stretch, generator) for gain, noise in zip(gains, noises))
    return first, second


def _space(latent: Tensor, gain: float, noise: float, stretch: float, generator: torch.Generator) -> Tensor:
    dim = latent.shape[1]
    space = torch.tanh(gain * 3**0.5 * latent @ _rotation(dim, generator)) @ _rotation(dim, generator)
    space = space / space.std() + noise * torch.rand(space.shape, generator=generator)
    if stretch > 1:
        space = space @ _rotation(dim, generator) * stretch ** torch.linspace(-0.5, 0.5, dim)
    return space


def _rotation(dim: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
