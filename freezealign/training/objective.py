"""Objective: from a batch to the loss in one forward, which is what DistributedDataParallel wraps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from freezealign.batch import Features, is_frozen
from freezealign.space import Space
from freezealign.space.recipes import default_pooling
from freezealign.training.arguments import FitArguments
from freezealign.training.losses import ContrastiveLoss, SigmoidLoss

LOSSES = {"infonce": ContrastiveLoss, "sigmoid": SigmoidLoss}
NEIGHBOURHOOD_TEMPERATURE = 0.05


class Objective(nn.Module):
    """The loss of a batch."""

    def __init__(self, space: Space, arguments: FitArguments) -> None:
        super().__init__()
        self.space, self.structure_weight = space, arguments.structure_weight
        self.loss = LOSSES[arguments.loss](global_negatives=arguments.global_negatives)
        self.poolings = {name: default_pooling(encoder) for name, encoder in space.encoders.items()}

    def forward(self, inputs: dict[str, Features], owners: dict[str, Tensor] | None) -> Tensor:
        """Return the loss, a scalar; arguments as :class:`~freezealign.training.batches.TrainingBatch` has them.

        Raw batches are encoded here.
        """
        encoders = self.space.encoders
        frozen = {name: batch if is_frozen(batch) else encoders[name](batch) for name, batch in inputs.items()}
        embeddings = self.space(frozen)
        ids = [] if owners is None else [owners[name] for name in embeddings]
        loss: Tensor = self.loss(*embeddings.values(), self.space.logit_scale, *ids)
        if self.structure_weight:
            terms = [
                neighbourhood_loss(self.space.tower(name).pooled(frozen[name], self.poolings[name]), vectors)
                for name, vectors in embeddings.items()
            ]
            loss = loss + self.structure_weight * sum(terms) / len(terms)
        return loss


def neighbourhood_loss(frozen: Tensor, embeddings: Tensor, temperature: float = NEIGHBOURHOOD_TEMPERATURE) -> Tensor:
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
