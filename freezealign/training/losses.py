"""Contrastive losses of two batches of embeddings: exact, in memory that grows with the batch and not with its square.

With ``global_negatives``, W ranks of ``torch.distributed`` that hold batches of one size act as one batch: the loss of
a rank is that of its rows against the columns of all, and its mean over the ranks is the loss of the whole batch. When
each rank calls ``backward`` on its own, the mean over the ranks of a parameter's gradients, which is what
``DistributedDataParallel`` takes, is the gradient of that loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from freezealign.modules import LogitScale
from freezealign.training.ranks import check_equal_sizes, gather, own, world_size
from freezealign.training.tiles import InfoNCE, PairwiseSigmoid, Positives


@torch.no_grad()
def by_position(first: Tensor, second: Tensor, ranks: int) -> Positives:
    """Pair row i of ``first``, (B, d), with column i of the same rank in ``second``, (K, d); each pair weighs 1/B."""
    if ranks == 1:
        return Positives(second, first, 1 / len(first))
    rows = torch.zeros_like(second)
    own(rows).copy_(first)
    return Positives(own(second), rows, 1 / len(first))


class Groups:
    """Rows and columns of one id, on all ranks that act as one, form a group: all of its pairs are positives.

    Attributes:
        rows: (B,), the group of each of this rank's rows.
        columns: (K,), the group of each column of all ranks.
        row_counts: (G,), the rows of each group, on all ranks; likewise ``column_counts``.
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


class PairLoss(nn.Module):
    """What both losses share.

    Args:
        tile_size: Rows and columns of the logits that exist at once; a batch of up to twice as many is computed in one
            piece. It changes memory and speed, not the loss.
        global_negatives: Whether the embeddings of all ranks are negatives, or each rank's own only.
    """

    def __init__(self, tile_size: int = 512, global_negatives: bool = True) -> None:
        super().__init__()
        if tile_size < 1:
            raise ValueError(f"tile_size must be at least 1, got {tile_size}.")
        self.tile_size, self.global_negatives = tile_size, global_negatives

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        logit_scale: LogitScale,
        first_ids: Tensor | None = None,
        second_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a scalar in float32, or in float64 for float64 embeddings.

        Args:
            first: (B, d), unit length, of any floating dtype.
            second: (M, d), unit length.
            logit_scale: Holds the temperature, and the bias where the loss has one.
            first_ids: (B,), integers, the same on all ranks for what belongs together: rows of equal ids are positives
                of each other. Without ids M is B, and row i of ``first`` belongs to row i of ``second``.
            second_ids: (M,), likewise.

        Raises:
            ValueError: If shapes do not fit, only one batch has ids, or ranks that act as one hold batches of different
                sizes.
        """
        shapes = tuple(first.shape), tuple(second.shape)
        if (first_ids is None) != (second_ids is None):
            raise ValueError("give ids for both batches, or for neither.")
        if first_ids is None and first.shape != second.shape:
            raise ValueError(f"the two batches must have one shape, got {shapes[0]} and {shapes[1]}; or give ids.")
        if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
            raise ValueError(f"the two batches must be (B, d) and (M, d), got {shapes[0]} and {shapes[1]}.")
        if not len(first) or not len(second):
            raise ValueError(f"a batch is empty: {shapes[0]} and {shapes[1]}.")
        for ids, batch in ((first_ids, first), (second_ids, second)):
            if ids is not None and ids.shape != batch.shape[:1]:
                raise ValueError(f"ids must be one a row, got {tuple(ids.shape)} for {tuple(batch.shape)}.")
        ranks = world_size() if self.global_negatives else 1
        if ranks > 1:
            check_equal_sizes([*first.shape, len(second), int(first_ids is not None)], first.device)
        groups = None
        if first_ids is not None and second_ids is not None:
            groups = Groups(first_ids.to(first.device), second_ids.to(first.device), ranks)
        dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
        rows, columns = first.to(dtype), second.to(dtype)
        return self.compute(rows, gather(columns) if ranks > 1 else columns, logit_scale, groups, ranks)

    def compute(
        self, rows: Tensor, columns: Tensor, logit_scale: LogitScale, groups: Groups | None, ranks: int
    ) -> Tensor:
        """Return the loss of this rank's rows (B, d) against the columns (K, d) of all, in float32 or float64.

        Without ``groups``, row i of every rank belongs to column i of it.
        """
        raise NotImplementedError


class ContrastiveLoss(PairLoss):
    """Symmetric InfoNCE with in-batch negatives.

    A row with positives P loses -1/|P| sum_{p in P} log softmax(logits)_p, the softmax over all columns and the logits
    cosine similarity divided by temperature; a column likewise over all rows. The loss is the mean of the mean over
    rows and the mean over columns. Source: Oord et al. 2018 (InfoNCE); Radford et al. 2021 (both directions);
    Khosla et al. 2020 (several positives, their "out" form).

    The temperature's gradient is computed here too; a bias, which cancels in the softmax, gets none.
    """

    def compute(
        self, rows: Tensor, columns: Tensor, logit_scale: LogitScale, groups: Groups | None, ranks: int
    ) -> Tensor:
        """Return the loss of the rows of this rank; arguments as the base has them."""
        temperature = logit_scale.temperature.to(rows.dtype)
        if groups is None:
            positives = by_position(rows, columns, ranks)
        else:
            positives = groups.positives(rows, columns, groups.mean_weights(rows.dtype))
        return InfoNCE.apply(rows, columns, temperature, positives, self.tile_size, ranks)


class SigmoidLoss(PairLoss):
    """Each pair judged by itself, a positive or not.

    -1/B sum_ij log sigmoid(z_ij (s_ij / temperature + bias)), with cosine similarity s, and z +1 for positives and -1
    for all other pairs. Source: Zhai et al. 2023. Start near their temperature 0.1 and bias -10, as most pairs are
    negatives.
    """

    def compute(
        self, rows: Tensor, columns: Tensor, logit_scale: LogitScale, groups: Groups | None, ranks: int
    ) -> Tensor:
        """Return the loss of the rows of this rank; arguments as the base has them."""
        if logit_scale.bias is None:
            raise ValueError(
                "the sigmoid loss needs a bias: LogitScale(temperature=0.1, bias=-10.0), or logit_scale.add_bias_()."
            )
        temperature, bias = logit_scale.temperature.to(rows.dtype), logit_scale.bias.to(rows.dtype)
        if groups is None:
            positives, a_row = by_position(rows, columns, ranks), 1.0
        else:
            equal = torch.full_like(groups.row_counts, 1 / len(rows), dtype=rows.dtype)
            positives = groups.positives(rows, columns, equal)
            a_row = int(groups.column_counts[groups.rows].sum()) / len(rows)
        # log sigmoid(x) = x + log sigmoid(-x): a positive is a negative plus its logit.
        return PairwiseSigmoid.apply(rows, columns, temperature, bias, positives, self.tile_size) - bias * a_row
