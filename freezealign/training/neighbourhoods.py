"""The neighbourhood loss: what is near in the frozen space stays near in the shared one."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from freezealign.batch import Features
from freezealign.modules.pooling import masked_mean

TEMPERATURE = 0.05


def neighbourhood_loss(frozen: Tensor, embeddings: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return how much the neighbourhoods of a batch differ before and after projection: a scalar in [0, log 2].

    The mean over rows of the Jensen–Shannon divergence between the softmax over cosine similarities to the other rows,
    in the frozen space and in the shared one, each centred. Memory is O(B²): the loss is for few pairs.
    Source: "With Limited Data for Multimodal Alignment, Let the STRUCTURE Guide You", NeurIPS 2025, at one level.

    Args:
        frozen: (B, D), not trained.
        embeddings: (B, d).
        temperature: Of the softmax.
    """
    with torch.autocast(frozen.device.type, enabled=False):
        before, after = _log_neighbours(frozen, temperature), _log_neighbours(embeddings, temperature)
    middle = torch.logaddexp(before, after) - math.log(2)
    divergence = before.exp() * (before - middle) + after.exp() * (after - middle)
    return divergence.sum(1).mean() / 2


def _log_neighbours(vectors: Tensor, temperature: float) -> Tensor:
    """Return for each row the log-probabilities of the other rows: (B, B - 1)."""
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    centred = normalize(vectors - vectors.mean(0), dim=-1)
    others = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    similarity = (centred @ centred.T)[others].view(len(vectors), len(vectors) - 1)
    return log_softmax(similarity / temperature, dim=-1)


def summary(features: Features) -> Tensor:
    """Return one vector an item (B, D) of frozen features: the pooled one, CLS, or the mean token."""
    if "token_embeddings" not in features:
        return features["sentence_embedding"]
    if features.get("cls_token_embeddings") is not None:
        return features["cls_token_embeddings"]
    tokens = features["token_embeddings"]
    mask = features.get("attention_mask")
    return tokens.mean(1) if mask is None else masked_mean(tokens, mask.bool())
