"""A uniform sample of a stream of pairs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class PairSample:
    """A uniform sample of pairs that depends neither on their order nor on how they are split.

    Every pair has a priority, a hash of its numbers; the pairs of the lowest stay, equal pairs together. Source: the
    bottom-k sketch of Cohen & Kaplan 2007 ("Summarizing data using bottom-k sketches", PODC).

    Args:
        size: How many pairs to keep; all by default.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size, self.limit = size, np.uint64(2**64 - 1)
        self.parts: list[tuple[np.ndarray, Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Offer pairs: (B, dx) and (B, dy).

        Raises:
            ValueError: If their widths are not those of the pairs before.
        """
        widths = (x.shape[1], y.shape[1])
        if self.parts and (before := tuple(part.shape[1] for part in self.parts[0][1:])) != widths:
            raise ValueError(f"the pairs so far are {before} wide, these are {widths}.")
        priority = _mixed(_hashed(x) + _mixed(_hashed(y)))
        low = torch.from_numpy(np.flatnonzero(priority <= self.limit)).to(x.device)
        self.parts.append((priority[low.cpu().numpy()], x[low], y[low.to(y.device)]))
        if self.size is not None and sum(len(part[0]) for part in self.parts) > 2 * self.size:
            self._settle()

    def merge(self, other: PairSample) -> None:
        """Offer the pairs of another sample."""
        for _, x, y in list(other.parts):
            self.add(x, y)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return the sample: (m, dx) and (m, dy), in order of priority."""
        if not self.parts:
            return torch.zeros(0, 1), torch.zeros(0, 1)
        self._settle()
        return self.parts[0][1:]

    def _settle(self) -> None:
        """Leave one part, in order."""
        priorities, xs, ys = zip(*self.parts)
        priority, x, y = np.concatenate(priorities), torch.cat(xs), torch.cat(ys)
        order = np.argsort(priority, kind="stable")[: self.size]
        index = torch.from_numpy(order)
        self.parts = [(priority[order], x[index.to(x.device)], y[index.to(y.device)])]
        if self.size is not None and len(order) == self.size:
            self.limit = self.parts[0][0][-1]


def _hashed(rows: Tensor) -> np.ndarray:
    """Return a hash of each row (n, d): the multilinear one, with fixed random weights."""
    bits = rows.contiguous().view(torch.int32 if rows.dtype == torch.float32 else torch.int64).long()
    bits = bits ^ (bits >> 32)  # the last bits of round numbers in float64 are all zero
    weights = np.random.default_rng(0).integers(-(2**63), 2**63, rows.shape[1], dtype=np.int64)
    weighted = bits * torch.from_numpy(weights).to(rows.device)
    return weighted.sum(1).cpu().numpy().view(np.uint64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return 64-bit numbers whose every bit depends on all bits of ``values``: the finaliser of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
