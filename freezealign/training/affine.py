"""AffineTower: the linear branch of a tower, which a closed form can set."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from freezealign.modules import Features, Module, Pooling, ProjectionHead, TokenProjector
from freezealign.modules.projection import AffineBranch, ResidualMLP
from freezealign.tower import Tower


class AffineMap(NamedTuple):
    """``x -> weight @ x + bias``."""

    weight: Tensor
    bias: Tensor


class NoClosedForm(Exception):
    """A tower has no linear branch from frozen features to the shared space; the message says why."""


class AffineTower:
    """A tower as an affine map of one vector an item: what its linear branch sees of frozen features.

    Towers of two forms have one: ``TokenProjector → Pooling (→ ProjectionHead)`` and ``Pooling → ProjectionHead``.

    Args:
        tower: Its blocks are set by :meth:`set`.

    Raises:
        NoClosedForm: If it is of another form.
    """

    def __init__(self, tower: Tower) -> None:
        self.tower, self.width = tower, tower.encoder.get_embedding_dimension()
        self.projector, self.pooling, self.head = self._parts(tower.blocks)
        self.branch = self._branch()

    def _parts(self, blocks: list[Module]) -> tuple[TokenProjector | None, Pooling, ProjectionHead | None]:
        match blocks:
            case [TokenProjector() as projector, Pooling() as pooling]:
                return projector, pooling, None
            case [TokenProjector() as projector, Pooling() as pooling, ProjectionHead() as head]:
                return projector, pooling, head
            case [Pooling() as pooling, ProjectionHead() as head]:
                return None, pooling, head
        raise NoClosedForm(f"the blocks {blocks} have no linear way through")

    def _branch(self) -> AffineBranch:
        """Return the projection whose linear branch is to be set; what comes after it must be able to pass it on."""
        block = self.projector or self.head
        assert block is not None
        branch = _projection(block)
        if not isinstance(branch, AffineBranch):
            raise NoClosedForm(f"a projection of kind '{block.kind}' has no linear branch")
        if self.projector is not None and self.head is not None and not _can_be_identity(self.head):
            raise NoClosedForm(f"{self.head} cannot pass a vector on unchanged")
        if self.pooling.mode == "max":
            raise NoClosedForm("a maximum over tokens is not linear")
        return branch

    def read(self, frozen: Features) -> Tensor:
        """Return what the linear branch sees of a batch of frozen features: (B, width)."""
        device = self.branch.affine().weight.device
        features = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in frozen.items()}
        if self.projector is None:
            pooled = self.pooling(features) if "token_embeddings" in features else features
            return self.branch.prepared(pooled["sentence_embedding"])
        if self.projector.cls_token is not None:
            return self.branch.prepared(features["cls_token_embeddings"])
        tokens = {**features, "token_embeddings": self.branch.prepared(features["token_embeddings"])}
        means: Tensor = self.pooling(tokens)["sentence_embedding"]
        return means

    def set(self, affine: AffineMap) -> None:
        """Make the tower compute ``affine`` of what :meth:`read` gives."""
        self.branch.set_affine(*affine)
        if self.projector is None:
            return
        if self.projector.cls_token is not None and isinstance(patches := self.projector.tokens, AffineBranch):
            patches.set_affine(torch.zeros_like(affine.weight), torch.zeros_like(affine.bias))
        if self.head is not None and isinstance(mlp := self.head.projection, ResidualMLP):
            mlp.set_identity()


def _projection(block: TokenProjector | ProjectionHead) -> nn.Module:
    """Return the projection that carries the closed form: CLS's where there is one."""
    if isinstance(block, ProjectionHead):
        return block.projection
    return block.tokens if block.cls_token is None else block.cls_token


def _can_be_identity(head: ProjectionHead) -> bool:
    return isinstance(head.projection, ResidualMLP) and head.in_dim == head.out_dim
