"""Objective: from a batch to the loss in one forward, which is what DistributedDataParallel wraps."""

from __future__ import annotations

from torch import Tensor, nn

from freezealign.batch import Features, is_frozen
from freezealign.space import Space
from freezealign.training.arguments import FitArguments
from freezealign.training.losses import ContrastiveLoss, SigmoidLoss
from freezealign.training.neighbourhoods import neighbourhood_loss, summary

LOSSES = {"infonce": ContrastiveLoss, "sigmoid": SigmoidLoss}


class Objective(nn.Module):
    """The loss of a batch.

    Args:
        space: What is trained.
        arguments: Loss, negatives and the weight of the structure loss.
    """

    def __init__(self, space: Space, arguments: FitArguments) -> None:
        super().__init__()
        self.space, self.structure_weight = space, arguments.structure_weight
        self.loss = LOSSES[arguments.loss](global_negatives=arguments.global_negatives)

    def forward(self, inputs: dict[str, Features], owners: dict[str, Tensor] | None) -> Tensor:
        """Return the loss, a scalar.

        Args:
            inputs: For each modality what its tower takes; raw batches are encoded here.
            owners: For each modality which pair of the data each of its rows belongs to.
        """
        frozen = {
            name: features if is_frozen(features) else self.space.tower(name).encoder(features)
            for name, features in inputs.items()
        }
        embeddings = self.space(frozen)
        ids = [] if owners is None else [owners[name] for name in embeddings]
        loss: Tensor = self.loss(*embeddings.values(), self.space.logit_scale, *ids)
        if self.structure_weight:
            terms = [neighbourhood_loss(summary(frozen[name]), vectors) for name, vectors in embeddings.items()]
            loss = loss + self.structure_weight * sum(terms) / len(terms)
        return loss
