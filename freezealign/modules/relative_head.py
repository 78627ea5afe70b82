"""RelativeHead: an item described by which training items it is like; no training at all."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from freezealign.modules.landmarks import LandmarkHead


class RelativeHead(LandmarkHead):
    """Turn ``sentence_embedding`` (..., in_dim) into its similarities to the landmarks: (..., L).

    Where the landmarks of two towers are pairs, the two descriptions can be compared: an image that is like the images
    of the pairs 3 and 8 matches a text that is like their texts. Negative cosines and all but the largest count as 0.
    Source: Norelli et al., "ASIF: Coupled Data Turns Unimodal Models to Multimodal Without Training", NeurIPS 2023;
    vectors are layer-normed and centred here, which pays.

    Args:
        in_dim: Width of the pooled vector.
        landmarks: How many there are; a new head has none until ``fit`` takes them from the training pairs.
        neighbours: How many of the largest similarities count.
        power: What they are raised to.
    """

    config_keys: ClassVar[list[str]] = ["in_dim", "landmarks", "neighbours", "power"]

    def __init__(self, in_dim: int, landmarks: int = 0, neighbours: int = 100, power: float = 2.0) -> None:
        super().__init__(in_dim, landmarks)
        self.neighbours, self.power = neighbours, power

    def compare(self, cosine: Tensor) -> Tensor:
        """Return the sparse similarities (..., L)."""
        positive = cosine.clamp(min=0)
        if self.neighbours < self.landmarks:
            threshold = positive.topk(self.neighbours, dim=-1).values[..., -1:]
            positive = positive * (positive >= threshold)
        return positive.pow(self.power)

    def get_embedding_dimension(self) -> int:
        """Return the number of landmarks."""
        return self.landmarks
