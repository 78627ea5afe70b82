"""What the losses exchange between the ranks of ``torch.distributed``."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Return the number of ranks, 1 without ``torch.distributed``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(tensor: Tensor) -> Tensor:
    """Return the tensors of all W ranks, (N, …) each, as one of (W N, …), in the order of the ranks.

    In backward each rank gets the sum over the ranks of the gradients of its own tensor.
    """
    return _Gather.apply(tensor)


def own(gathered: Tensor) -> Tensor:
    """Return this rank's part of what :func:`gather` returned."""
    return gathered.chunk(dist.get_world_size())[dist.get_rank()]


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Not reduce_scatter, which gloo lacks in many versions of torch.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return own(total)


def log2_add_ranks(values: Tensor) -> None:
    """Replace binary log-sums by the logarithm of their sum over the ranks, in place."""
    top = values.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX)
    values.sub_(top).exp2_()
    dist.all_reduce(values)
    values.log2_().add_(top)


def check_equal_sizes(sizes: list[int], device: torch.device) -> None:
    """Raise a ``ValueError``, on every rank, unless all ranks hold batches of one size.

    Args:
        sizes: Rows of the first batch, rows of the second, width, and 1 if there are ids, 0 if not.
        device: Where the ranks exchange.
    """
    everyone = gather(torch.tensor([sizes], device=device)).tolist()
    if any(other != everyone[0] for other in everyone):
        raise ValueError(
            "to share negatives all ranks must hold batches of one size, and all have ids or none; (rows, rows, width, "
            f"ids) by rank: {everyone}. Drop the last, smaller batch, or set global_negatives=False."
        )
