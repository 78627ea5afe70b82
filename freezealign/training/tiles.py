"""Sums over the logits of two batches, tile by tile: all logits never exist at once, and backward makes them anew.

Where they fit one tile, that tile is kept for backward: a small batch then costs no matrix product more than the plain
formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from freezealign.training.ranks import gather

# Beyond this softplus(x) is x in float64 too, and exp(x) does not overflow in float32.
LINEAR_FROM = 40


class Positives(NamedTuple):
    """What the positives add to a loss and its gradients: the similarity of each pair times its weight.

    For each of this rank's rows the weighted sum of the columns that belong to it (B, d), for each column of all ranks
    that of the rows of this rank (K, d), and a factor of both.
    """

    first: Tensor
    second: Tensor
    scale: float = 1.0


class InfoNCE(Function):
    """The mean of the rows' and the columns' mean log-sum-exp, less the logits of the positives.

    Forward keeps one number a row and one a column. Powers are of 2, which torch computes 4 times as fast on a CPU as
    those of e.
    """

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, temperature: Tensor, positives: Positives, tile_size: int, ranks: int
    ) -> Tensor:
        """Return a scalar for this rank's rows (B, d) and the columns (K, d) that ``ranks`` ranks share."""
        rows = first.new_full((len(first),), -torch.inf)
        columns = first.new_full((len(second),), -torch.inf)
        binary = temperature * math.log(2)
        for row, column in tiles(first, second, tile_size):
            logits = tile_logits(first[row], second[column], binary)
            for sums, part, dim in ((rows, row, 1), (columns, column, 0)):
                torch.logaddexp2(sums[part], log2_sum_exp2(logits, dim), out=sums[part])
        if ranks > 1:
            columns = log2_sum_exp2(gather(columns).view(ranks, -1), 0)
        keep(ctx, positives, tile_size, logits, first, second, temperature, rows, columns)
        ctx.ranks = ranks
        gained = (first * positives.first).sum() * positives.scale / temperature
        return (rows.mean() + columns.mean()) * (math.log(2) / 2) - gained

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients: softmax along the rows plus softmax along the columns, each with its mean's weight."""
        *_, temperature, _, rows, columns = ctx.saved_tensors
        # The weights of the means go into the exponent, where they cost nothing.
        rows = rows[:, None] + math.log2(2 * len(rows))
        columns = columns + math.log2(2 * len(columns) / ctx.ranks)

        def weigh(logits: Tensor, row: slice, column: slice) -> Tensor:
            return (logits - rows[row]).exp2_().add_((logits - columns[column]).exp2_())

        return *backpropagate(ctx, gradient, temperature * math.log(2), weigh), None, None, None


class PairwiseSigmoid(Function):
    """The sum over all pairs of log(1 + exp(logit)) divided by the number of rows, less the logits of the positives.

    The bias, which is added to every logit, is left to the caller for the positives.
    """

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, temperature: Tensor, bias: Tensor, positives: Positives, tile_size: int
    ) -> Tensor:
        """Return a scalar for this rank's rows (B, d) and the columns (K, d) of all ranks."""
        total = first.new_zeros(())
        for row, column in tiles(first, second, tile_size):
            logits = tile_logits(first[row], second[column], temperature)
            total += softplus(logits + bias, threshold=LINEAR_FROM).sum()
        keep(ctx, positives, tile_size, logits, first, second, temperature, bias)
        return total / len(first) - (first * positives.first).sum() * positives.scale / temperature

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients; that of a logit is its sigmoid."""
        first, *_, temperature, _, bias = ctx.saved_tensors
        bias_gradient = torch.zeros_like(bias)

        def weigh(logits: Tensor, row: slice, column: slice) -> Tensor:
            weights = (logits + bias).sigmoid_().div_(len(first))
            bias_gradient.add_(weights.sum())
            return weights

        gradients = backpropagate(ctx, gradient, temperature, weigh)
        return *gradients, gradient * bias_gradient, None, None


def tiles(first: Tensor, second: Tensor, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and the columns of every tile; up to twice ``size`` it is one tile, the fastest by far."""
    if max(len(first), len(second)) <= 2 * size:
        size *= 2
    for row in range(0, len(first), size):
        for column in range(0, len(second), size):
            yield slice(row, row + size), slice(column, column + size)


def tile_logits(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
    """Return similarity over temperature, in the dtype of the embeddings even under autocast."""
    with torch.autocast(first.device.type, enabled=False):
        return (first @ second.T).div_(temperature)


def log2_sum_exp2(logits: Tensor, dim: int) -> Tensor:
    """Return the binary logarithm of the sum of powers of 2 along ``dim``."""
    top = logits.amax(dim, keepdim=True)
    return (logits - top).exp2_().sum(dim).log2_().add_(top.squeeze(dim))


def keep(ctx: Any, positives: Positives, tile_size: int, logits: Tensor, *batches: Tensor) -> None:
    """Save what backward needs: the batches, the temperature and the rest; the last tile only if it is the only one."""
    first, second, temperature, *rest = batches
    whole = logits if logits.shape == (len(first), len(second)) else None
    ctx.save_for_backward(first, second, positives.first, positives.second, temperature, whole, *rest)
    ctx.positive_scale, ctx.tile_size = positives.scale, tile_size


def backpropagate(
    ctx: Any, gradient: Tensor, divisor: Tensor, weigh: Callable[[Tensor, slice, slice], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of both batches and of the temperature, from what :func:`keep` kept.

    ``divisor`` made logits of similarities; ``weigh`` makes a tile of them the loss's gradient by similarity over
    temperature.
    """
    first, second, first_positives, second_positives, temperature, whole, *_ = ctx.saved_tensors
    scale = gradient / temperature
    first_gradient = first_positives * (-ctx.positive_scale * scale)
    second_gradient = second_positives * (-ctx.positive_scale * scale)
    for row, column in tiles(first, second, ctx.tile_size):
        logits = tile_logits(first[row], second[column], divisor) if whole is None else whole
        weights = weigh(logits, row, column).mul_(scale)
        first_gradient[row].addmm_(weights, second[column])
        second_gradient[column].addmm_(weights.T, first[row])
    # Summed over all pairs, gradient times similarity is this: the temperature needs no pass of its own over the tiles.
    return first_gradient, second_gradient, -(first_gradient * first).sum() / temperature
