"""Alignment as shared neighbours: do two spaces agree on which items are close?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from freezealign.alignment.measure import Indices, Measure, item_tiles, unit_norm
from freezealign.alignment.vectors import Vectors, unit_rows

K = 10


class _NeighbourMeasure(Measure):
    """A measure over the k nearest neighbours of every item by cosine, which is 0 with a vector of zeros.

    Args:
        k: Neighbours; fewer than there are other items.
    """

    def __init__(self, k: int = K) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        self.k, self.least = k, max(4, k + 2)

    def kernel(self, x: Tensor) -> Tensor:
        """Return the cosine of every item with every item."""
        x = unit_rows(x)
        return x @ x.T

    def describe(self, kernel: Tensor) -> Tensor:
        """Return the weights of neighbours, zero elsewhere."""
        items, similarity = strongest(kernel, 0, self.k)
        weights = self._weights(similarity, kernel.mean(1, keepdim=True))
        return unit_norm(torch.zeros_like(kernel).scatter_(1, items, weights.to(kernel)))

    def measure_many(self, spaces: Sequence[Vectors], pairs: Indices) -> list[float]:
        """Find the neighbours in every space once, by tiles: O(n (d + k)) memory, O(n² d) time."""
        lists = []
        for space in spaces:
            x = unit_rows(space.all())
            found = [strongest(x[tile] @ x.T, tile.start, self.k) for tile in item_tiles(len(x), len(x))]
            items, similarity = (torch.cat(parts) for parts in zip(*found))
            lists.append((items, unit_norm(self._weights(similarity.double(), (x @ x.mean(0))[:, None]))))
        return [shared(*lists[i], *lists[j]) for i, j in pairs]

    def _weights(self, similarity: Tensor, mean: Tensor) -> Tensor:
        """Return the weight of every neighbour (n, k), from its similarity and that of all items on average (n, 1)."""
        raise NotImplementedError


class MutualKNN(_NeighbourMeasure):
    """The mean share of an item's k nearest neighbours that are its neighbours in both spaces.

    Unrelated spaces read k / (n - 1). Ties are broken arbitrarily. Source: Huh et al. 2024 (arXiv 2405.07987).
    """

    name = "mutual_knn"

    def _weights(self, similarity: Tensor, mean: Tensor) -> Tensor:
        return torch.ones_like(similarity)


class CKNNA(_NeighbourMeasure):
    """Centred kernel nearest-neighbour alignment: CKA over pairs of items that are neighbours in both spaces.

    Inner products are centred by their mean over the row, as in the definition. Source: Huh et al. 2024
    (arXiv 2405.07987), appendix A.
    """

    name = "cknna"

    def _weights(self, similarity: Tensor, mean: Tensor) -> Tensor:
        return similarity - mean


def strongest(similarity: Tensor, start: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest others of items number ``start`` on, nearest first, and how similar: (B, k) from (B, n)."""
    diagonal = similarity.diagonal(start)
    own = diagonal.clone()
    diagonal.fill_(float("-inf"))
    values, items = similarity.topk(k)
    diagonal.copy_(own)
    return items, values


def shared(index_x: Tensor, weights_x: Tensor, index_y: Tensor, weights_y: Tensor) -> float:
    """Return Σ w_x(i, j) · w_y(i, j) over the pairs (i, j) that are neighbours in both lists, each (n, k)."""
    total = 0.0
    for tile in item_tiles(len(index_x), index_x.shape[1] ** 2):
        same = index_x[tile, :, None] == index_y[tile, None, :]
        total += float((weights_x[tile, :, None] * weights_y[tile, None, :] * same).sum())
    return total


def mutual_knn(x: Any, y: Any, k: int = K) -> float:
    """Return the mutual k-nearest-neighbour alignment of x (n, dx) and y (n, dy); see :class:`MutualKNN`."""
    return MutualKNN(k)(x, y)


def cknna(x: Any, y: Any, k: int = K) -> float:
    """Return the CKNNA of x (n, dx) and y (n, dy); see :class:`CKNNA`."""
    return CKNNA(k)(x, y)
