"""The trainable maps from an encoder's width to the shared width, as plain functions of the last dimension.

``d`` is the output width. All layers keep PyTorch's default initialisation, GELU is the exact one.
Source: Maniparambil et al., "Harnessing Frozen Unimodal Encoders for Flexible Multimodal Alignment", CVPR 2025.
"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from freezealign.modules.base import check_options
from freezealign.modules.pooling import masked_mean

ProjectionKind = Literal["linear", "mlp", "linear+mlp", "glu", "identity"]


class LinearProjection(nn.Linear):
    """``Linear(in, d)(x)``; like what else has a linear branch, a closed form can set it."""

    def prepared(self, x: Tensor) -> Tensor:
        """Return what the linear branch sees of ``x`` (..., in), without dropout."""
        return x.to(self.weight)

    @torch.no_grad()
    def set_affine(self, weight: Tensor, bias: Tensor) -> None:
        """Make this ``weight @ prepared(x) + bias``; what is added to the linear branch starts at zero."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)


class NormedBranches(nn.Module):
    """``x = Dropout(LayerNorm(in)(x))``; returns ``Linear(in, d)(x)`` plus a non-linear branch that ends linear too."""

    last_name: ClassVar[str]

    def __init__(self, in_dim: int, out_dim: int, dropout: float) -> None:
        super().__init__()
        self.prepare = nn.Sequential(nn.LayerNorm(in_dim), nn.Dropout(dropout))
        self.linear = LinearProjection(in_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., d)."""
        x = self.prepare(x)
        return self.linear(x) + self.last(self.hidden(x))

    def mean(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of :meth:`forward` over tokens (B, T, in) where ``mask`` (B, T) is true: (B, d).

        The linear layers commute with a mean, so they see one vector an item: many times less work for the same result.
        """
        x = self.prepare(tokens)
        projected = self.linear(masked_mean(x, mask)) + self.last(masked_mean(self.hidden(x), mask))
        return projected * mask.any(1, keepdim=True)

    def hidden(self, x: Tensor) -> Tensor:
        """Return what the non-linear branch makes of the prepared ``x``, before its last layer."""
        raise NotImplementedError

    @property
    def last(self) -> nn.Module:
        """The linear layer that ends the non-linear branch."""
        return self.get_submodule(self.last_name)

    def prepared(self, x: Tensor) -> Tensor:
        """Return the layer-normed ``x``."""
        normed: Tensor = self.prepare[0](self.linear.prepared(x))
        return normed

    def set_affine(self, weight: Tensor, bias: Tensor) -> None:
        """Make this ``weight @ LayerNorm(x) + bias``, with a non-linear branch that starts at zero."""
        self.linear.set_affine(weight, bias)
        _zero(self.last)


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


class TokenProjection(NormedBranches):
    """The paper's projector: LayerNorm and dropout, then a linear and a GELU branch, summed. No norm after the sum.

    ``x = Dropout(LayerNorm(in)(x))``; returns ``Linear(in, d)(x) + Linear(d, d)(GELU(Linear(in, d)(x)))``.
    """

    last_name = "nonlinear.2"

    def __init__(self, in_dim: int, out_dim: int, dropout: float = 0.1) -> None:
        super().__init__(in_dim, out_dim, dropout)
        self.nonlinear = nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))

    def hidden(self, x: Tensor) -> Tensor:
        """Return ``GELU(Linear(in, d)(x))``."""
        curved: Tensor = self.nonlinear[:2](x)
        return curved


class GatedProjection(NormedBranches):
    """A gated linear unit beside a linear branch, under a budget of parameters.

    ``x = Dropout(LayerNorm(in)(x))``; returns
    ``Linear(in, d)(x) + Linear(h, d)(SiLU(Linear(in, h)(x)) · Linear(in, h)(x))``, with h as large as the parameters of
    a ``linear+mlp`` projection of the same widths allow, so that the two compare.
    Sources: Shazeer 2020 (SwiGLU); Zhang et al., "Assessing and Learning Alignment of Unimodal Vision and Language
    Models", CVPR 2025 (a gated head for frozen encoders).
    """

    last_name = "out"

    def __init__(self, in_dim: int, out_dim: int, dropout: float = 0.1) -> None:
        super().__init__(in_dim, out_dim, dropout)
        budget = in_dim * out_dim + out_dim * out_dim + 2 * out_dim
        hidden = max(1, (budget - out_dim) // (2 * in_dim + out_dim + 2))
        self.gate, self.value = nn.Linear(in_dim, hidden), nn.Linear(in_dim, hidden)
        self.out = nn.Linear(hidden, out_dim)

    def hidden(self, x: Tensor) -> Tensor:
        """Return ``SiLU(Linear(in, h)(x)) · Linear(in, h)(x)``."""
        return functional.silu(self.gate(x)) * self.value(x)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def make_projection(kind: ProjectionKind, in_dim: int, out_dim: int, dropout: float = 0.1) -> nn.Module:
    """Build the map named ``kind`` from width ``in_dim`` to ``out_dim``.

    Raises:
        ValueError: If ``kind`` is unknown, an option is out of its range, or widths differ that ``identity`` keeps.
    """
    check_options(in_dim=in_dim, out_dim=out_dim, dropout=dropout)
    if kind not in get_args(ProjectionKind):
        raise ValueError(f"unknown projection {kind!r}; choose one of {get_args(ProjectionKind)}.")
    if kind == "identity" and in_dim != out_dim:
        raise ValueError(f"an identity projection keeps its width, but in_dim={in_dim} and out_dim={out_dim}.")
    if kind in ("identity", "linear"):
        return nn.Identity() if kind == "identity" else LinearProjection(in_dim, out_dim)
    classes = {"mlp": ResidualMLP, "linear+mlp": TokenProjection, "glu": GatedProjection}
    return classes[kind](in_dim, out_dim, dropout)


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
    return x.to(next(block.parameters(), x).dtype)
