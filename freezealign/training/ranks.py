"""What the losses exchange between the ranks of ``torch.distributed``."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks, 1 without ``torch.distributed``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(tensor: Tensor) -> Tensor:
    """Return the tensors of all W ranks, (N, …) each, as one of (W N, …), in the order of the ranks.

    In backward each rank gets the sum over the ranks of the gradients of its own tensor.
    """
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(tensor.contiguous()))


def own(gathered: Tensor) -> Tensor:
    """Return this rank's part of what :func:`gather` returned."""
    return gathered.chunk(dist.get_world_size())[dist.get_rank()]


def check_equal_sizes(sizes: list[int], device: torch.device) -> None:
    """Raise a ``ValueError``, on every rank, unless all ranks hold batches of these sizes: rows, width, rows, ids."""
    everyone = gather(torch.tensor([sizes], device=device)).tolist()
    if any(other != everyone[0] for other in everyone):
        raise ValueError(
            "to share negatives all ranks must hold batches of one size, and all have ids or none; (rows, width, rows, "
            f"ids) by rank: {everyone}. Drop the last, smaller batch, or set global_negatives=False."
        )
