"""Which pairs of two batches are positives, by position or by ids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freezealign.training.ranks import gather, own


@dataclass
class Positives:
    """What the positives add to a loss and its gradients: the similarity of each pair times its weight.

    Args:
        first: (B, d), for each of this rank's rows the weighted sum of the columns that belong to it.
        second: (K, d), for each column of all ranks the weighted sum of the rows of this rank that belong to it.
        scale: A factor of both.
    """

    first: Tensor
    second: Tensor
    scale: float = 1.0

    def similarity(self, first: Tensor) -> Tensor:
        """Return the weighted sum of the similarities, a scalar."""
        return (first * self.first).sum() * self.scale


@torch.no_grad()
def by_position(first: Tensor, second: Tensor, ranks: int) -> Positives:
    """Pair row i of ``first``, (B, d), with column i of the same rank in ``second``, (K, d); each pair weighs 1/B."""
    if ranks == 1:
        return Positives(second, first, 1 / len(first))
    rows = torch.zeros_like(second)
    own(rows).copy_(first)
    return Positives(own(second), rows, 1 / len(first))


@dataclass
class Groups:
    """Rows and columns of one id form a group: all of its pairs are positives.

    Args:
        rows: (B,), the group of each of this rank's rows.
        columns: (K,), the group of each column of all ranks.
        row_counts: (G,), the rows of each group, on all ranks.
        column_counts: (G,), the columns of each group, on all ranks.
        ranks: How many ranks act as one.
    """

    rows: Tensor
    columns: Tensor
    row_counts: Tensor
    column_counts: Tensor
    ranks: int

    @classmethod
    def of(cls, first_ids: Tensor, second_ids: Tensor, ranks: int) -> Groups:
        """Group this rank's ids, (B,) and (M,), with those of the other ranks."""
        if ranks > 1:
            first_ids, second_ids = gather(first_ids), gather(second_ids)
        names, groups = torch.unique(torch.cat([first_ids, second_ids]), return_inverse=True)
        rows, columns = groups.split([len(first_ids), len(second_ids)])
        row_counts, column_counts = (torch.bincount(side, minlength=len(names)) for side in (rows, columns))
        return cls(own(rows) if ranks > 1 else rows, columns, row_counts, column_counts, ranks)

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

    def equal_weights(self, dtype: torch.dtype) -> Tensor:
        """Return what a pair of each group weighs, (G,), in the sum over all pairs divided by the number of rows."""
        return torch.full_like(self.row_counts, 1 / len(self.rows), dtype=dtype)

    def positives_a_row(self) -> float:
        """Return how many positives one of this rank's rows has on average."""
        return int(self.column_counts[self.rows].sum()) / len(self.rows)

    @torch.no_grad()
    def positives(self, first: Tensor, second: Tensor, weights: Tensor) -> Positives:
        """Return the positives of ``first``, (B, d), among all columns ``second``, (K, d), weighted by group, (G,)."""
        weights = weights[:, None]
        columns = first.new_zeros(len(weights), first.shape[1]).index_add_(0, self.columns, second).mul_(weights)
        rows = first.new_zeros(len(weights), first.shape[1]).index_add_(0, self.rows, first).mul_(weights)
        return Positives(columns[self.rows], rows[self.columns])
