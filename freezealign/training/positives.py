"""Which pairs of two batches are positives, by position or by ids."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from freezealign.training.ranks import gather, own


class Positives(NamedTuple):
    """What the positives add to a loss and its gradients: the similarity of each pair times its weight.

    Args:
        first: (B, d), for each of this rank's rows the weighted sum of the columns that belong to it.
        second: (K, d), for each column of all ranks the weighted sum of the rows of this rank that belong to it.
        scale: A factor of both.
    """

    first: Tensor
    second: Tensor
    scale: float = 1.0


@torch.no_grad()
def by_position(first: Tensor, second: Tensor, ranks: int) -> Positives:
    """Pair row i of ``first``, (B, d), with column i of the same rank in ``second``, (K, d); each pair weighs 1/B."""
    if ranks == 1:
        return Positives(second, first, 1 / len(first))
    rows = torch.zeros_like(second)
    own(rows).copy_(first)
    return Positives(own(second), rows, 1 / len(first))


class Groups:
    """Rows and columns of one id form a group: all of its pairs are positives.

    Args:
        first_ids: (B,), of this rank's rows.
        second_ids: (M,), of its columns.
        ranks: How many ranks act as one.

    Attributes:
        rows: (B,), the group of each of this rank's rows.
        columns: (K,), the group of each column of all ranks.
        row_counts: (G,), the rows of each group, on all ranks.
        column_counts: (G,), the columns of each group, on all ranks.
    """

    def __init__(self, first_ids: Tensor, second_ids: Tensor, ranks: int) -> None:
        if ranks > 1:
            first_ids, second_ids = gather(first_ids), gather(second_ids)
        names, groups = torch.unique(torch.cat([first_ids, second_ids]), return_inverse=True)
        rows, self.columns = groups.split([len(first_ids), len(second_ids)])
        self.row_counts, self.column_counts = (
            torch.bincount(side, minlength=len(names)) for side in (rows, self.columns)
        )
        self.rows, self.ranks = own(rows) if ranks > 1 else rows, ranks

    def mean_weights(self, dtype: torch.dtype) -> Tensor:
        """Return what a pair of each group weighs, (G,), in the mean over rows and columns of the mean over positives.

        Raises:
            ValueError: If a row or a column has no positive.
        """
        lonely = (self.row_counts == 0) | (self.column_counts == 0)
        if lonely.any():
            raise ValueError(
                f"{int(lonely.sum())} of {len(lonely)} ids are in one batch only, so that their rows have no positive; "
                "leave such rows out, or give each a partner."
            )
        rows, columns = len(self.rows) * self.column_counts, len(self.columns) // self.ranks * self.row_counts
        return (rows.to(dtype).reciprocal() + columns.to(dtype).reciprocal()) / 2

    @torch.no_grad()
    def positives(self, first: Tensor, second: Tensor, weights: Tensor) -> Positives:
        """Return the positives of ``first``, (B, d), among all columns ``second``, (K, d), weighted by group, (G,)."""
        weights = weights[:, None]
        columns = first.new_zeros(len(weights), first.shape[1]).index_add_(0, self.columns, second).mul_(weights)
        rows = first.new_zeros(len(weights), first.shape[1]).index_add_(0, self.rows, first).mul_(weights)
        return Positives(columns[self.rows], rows[self.columns])
