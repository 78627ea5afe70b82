"""Representational similarity analysis: do two spaces order the distances between items alike?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from freezealign.alignment.measure import Indices, Measure, item_tiles, unit_norm
from freezealign.alignment.vectors import Vectors, unit_rows

LEVELS = 2**18
"""Distances of more than a few items are told apart in so many steps from 0 to 2."""
DECIMALS = {torch.float32: 5, torch.float64: 12}
"""Distances of a few items that agree so far are equal."""


class RSA(Measure):
    """Spearman's rank correlation of the distances between all pairs of items; a distance is 1 - Pearson's r.

    An item whose numbers are all equal has distance 1 from all others.

    Of many items, distances are rounded to 2 / 262,144 before they are ranked, equal ones sharing their mean rank.
    Source: Kriegeskorte et al. 2008 ("Representational similarity analysis", Frontiers in Systems Neuroscience 2).
    """

    name = "rsa"

    def kernel(self, x: Tensor) -> Tensor:
        """Return the distance of every item to every item."""
        x = standardised(x)
        return 1 - x @ x.T

    def describe(self, kernel: Tensor) -> Tensor:
        """Return the centred ranks of distances, symmetric, zeros on the diagonal."""
        from scipy.stats import rankdata

        above = tuple(torch.triu_indices(len(kernel), len(kernel), 1, device=kernel.device))
        ranks = torch.from_numpy(rankdata(kernel[above].round(decimals=DECIMALS[kernel.dtype]).cpu().numpy()))
        matrix = torch.zeros_like(kernel)
        matrix[above] = (ranks - ranks.mean()).to(matrix)
        return unit_norm(matrix + matrix.T)

    def measure_many(self, spaces: Sequence[Vectors], pairs: Indices) -> list[float]:
        """Rank by counting, a tile at a time, in two passes: O(n d) memory, O(n² d) time."""
        vectors = [standardised(space.all()) for space in spaces]
        ranks = [_level_ranks(x) for x in vectors]
        totals, n = dict.fromkeys(pairs, 0.0), len(spaces[0])
        for tile in item_tiles(n, n * len(spaces)):
            found = [own[_levels(x, tile)] for own, x in zip(ranks, vectors)]
            for values in found:
                values.diagonal(tile.start).zero_()
            for i, j in pairs:
                totals[i, j] += float((found[i] * found[j]).sum())
        return list(totals.values())


def standardised(x: Tensor) -> Tensor:
    """Return rows whose inner product is their Pearson correlation; zeros for one that varies by rounding only."""
    x = unit_rows(x)
    x -= x.mean(1, keepdim=True)
    x *= x.norm(dim=1, keepdim=True) > 10 * torch.finfo(x.dtype).eps
    return unit_rows(x)


def _levels(x: Tensor, rows: slice) -> Tensor:
    """Return the rounded distances of some rows of ``x`` to all, as numbers of levels."""
    return ((1 - x[rows] @ x.T) * (LEVELS / 2)).round_().long().clamp_(0, LEVELS - 1)


def _level_ranks(x: Tensor) -> Tensor:
    """Return the centred mean rank of the distances at each level, scaled so that all ranks together have norm 1."""
    counts = torch.zeros(LEVELS, dtype=torch.int64, device=x.device)
    for tile in item_tiles(len(x), len(x)):
        levels = _levels(x, tile)
        counts += levels.flatten().bincount(minlength=LEVELS)
        counts -= levels.diagonal(tile.start).bincount(minlength=LEVELS)
    ranks = counts.cumsum(0).double() - counts / 2
    ranks -= counts.sum() / 2
    return ranks / (counts * ranks.square()).sum().sqrt()


def rsa(x: Any, y: Any) -> float:
    """Return the rank correlation of the distances in x (n, dx) and y (n, dy); see :class:`RSA`."""
    return RSA()(x, y)
