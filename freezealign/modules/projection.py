"""The trainable maps from an encoder's width to the shared width, as plain functions of the last dimension.

``d`` is the output width. All layers keep PyTorch's default initialisation, GELU is the exact one.
Source: Maniparambil et al., "Harnessing Frozen Unimodal Encoders for Flexible Multimodal Alignment", CVPR 2025.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

ProjectionKind = Literal["linear", "mlp", "token", "identity"]


class ResidualMLP(nn.Module):
    """``p = Linear(in, d)(x)``; returns ``LayerNorm(Dropout(Linear(d, d)(GELU(p))) + p)``."""

    def __init__(self, in_dim: int, out_dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.projection = nn.Linear(in_dim, out_dim)
        self.refine = nn.Sequential(nn.GELU(), nn.Linear(out_dim, out_dim), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., d)."""
        projected = self.projection(x)
        return self.norm(self.refine(projected) + projected)

    @torch.no_grad()
    def set_identity(self) -> None:
        """Make this ``LayerNorm(x)``, with a non-linear branch that starts at zero; input and output are one width."""
        nn.init.eye_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        _zero(self.refine[1])


class TokenProjection(nn.Module):
    """The paper's projector: LayerNorm and dropout, then a linear and a GELU branch, summed. No norm after the sum.

    ``x = Dropout(LayerNorm(in)(x))``; returns ``Linear(in, d)(x) + Linear(d, d)(GELU(Linear(in, d)(x)))``.
    """

    def __init__(self, in_dim: int, out_dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.prepare = nn.Sequential(nn.LayerNorm(in_dim), nn.Dropout(dropout))
        self.linear = nn.Linear(in_dim, out_dim)
        self.nonlinear = nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., d)."""
        x = self.prepare(x)
        return self.linear(x) + self.nonlinear(x)

    @torch.no_grad()
    def set_affine(self, weight: Tensor, bias: Tensor) -> None:
        """Make this ``weight @ LayerNorm(x) + bias``, with a non-linear branch that starts at zero."""
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)
        _zero(self.nonlinear[2])


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def make_projection(kind: ProjectionKind, in_dim: int, out_dim: int, dropout: float = 0.1) -> nn.Module:
    """Build the map named ``kind`` from width ``in_dim`` to ``out_dim``.

    Raises:
        ValueError: If ``kind`` is unknown, or is ``identity`` while the widths differ.
    """
    if kind == "linear":
        return nn.Linear(in_dim, out_dim)
    if kind == "mlp":
        return ResidualMLP(in_dim, out_dim, dropout)
    if kind == "token":
        return TokenProjection(in_dim, out_dim, dropout)
    if kind == "identity":
        if in_dim != out_dim:
            raise ValueError(f"an identity projection keeps its width, but in_dim={in_dim} and out_dim={out_dim}.")
        return nn.Identity()
    raise ValueError(f"unknown projection {kind!r}; choose one of {get_args(ProjectionKind)}.")


def fit_input(x: Tensor, in_dim: int, block: nn.Module) -> Tensor:
    """Return ``x`` (..., in_dim) in the precision of the block's weights: an encoder may have another.

    Raises:
        ValueError: If the width is another; the message names both.
    """
    if x.shape[-1] != in_dim:
        raise ValueError(
            f"{type(block).__name__} was built for width {in_dim} but the encoder before it gives {x.shape[-1]}; "
            f"build it with in_dim={x.shape[-1]}."
        )
    weight = next(block.parameters(), x)
    return x.to(weight.dtype)
