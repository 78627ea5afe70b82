"""Contrastive losses, as pure functions of two batches of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from freezealign.modules import LogitScale


class ContrastiveLoss(nn.Module):
    """Symmetric InfoNCE with in-batch negatives.

    The mean of two cross entropies over cosine similarity divided by temperature: each row must find its column, each
    column its row. Source: Oord et al. 2018 (InfoNCE); Radford et al. 2021 (both directions).
    """

    def forward(self, first: Tensor, second: Tensor, logit_scale: LogitScale) -> Tensor:
        """Return the loss, a scalar.

        Args:
            first: (B, d), unit length.
            second: (B, d), unit length; row i belongs to row i of ``first``.
            logit_scale: Holds the temperature.
        """
        if first.shape != second.shape:
            raise ValueError(
                f"the two batches must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}."
            )
        logits = logit_scale(first @ second.T)
        targets = torch.arange(len(logits), device=logits.device)
        return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
