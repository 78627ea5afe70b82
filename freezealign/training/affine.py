"""AffineTower: the linear branch of a tower, which a closed form can set."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from freezealign.batch import Features, to_device
from freezealign.modules import KernelHead, Module, Pooling, ProjectionHead, TokenProjector
from freezealign.modules.projection import AffineBranch, ResidualMLP
from freezealign.space.tower import Tower


class AffineMap(NamedTuple):
    """``x -> weight @ x + bias``."""

    weight: Tensor
    bias: Tensor


class NoClosedFormError(Exception):
    """A tower has no linear branch from frozen features to the shared space; the message says why."""


class AffineTower:
    """A tower as an affine map of one vector an item: what its linear branch sees of frozen features.

    Towers of three forms have one: ``TokenProjector → Pooling (→ ProjectionHead)``, ``Pooling → ProjectionHead``, and
    ``Pooling → KernelHead``, which is linear in similarities to landmarks.

    Args:
        tower: Its blocks are set by :meth:`set`.

    Raises:
        NoClosedFormError: If it is of another form.
    """

    def __init__(self, tower: Tower) -> None:
        self.tower, self.width = tower, tower.encoder.get_embedding_dimension()
        self.projector, self.pooling, self.head = self._parts(tower.blocks)
        self.branch = self._branch()

    def _parts(self, blocks: list[Module]) -> tuple[TokenProjector | None, Pooling, ProjectionHead | KernelHead | None]:
        match blocks:
            case [TokenProjector() as projector, Pooling() as pooling]:
                return projector, pooling, None
            case [TokenProjector() as projector, Pooling() as pooling, ProjectionHead() as head]:
                return projector, pooling, head
            case [Pooling() as pooling, (ProjectionHead() | KernelHead()) as head]:
                return None, pooling, head
        raise NoClosedFormError(f"the blocks {blocks} have no linear way through")

    def _branch(self) -> AffineBranch:
        """Return the projection whose linear branch is to be set; what comes after it must be able to pass it on."""
        block = self.projector or self.head
        assert block is not None
        branch = _projection(block)
        if not isinstance(branch, AffineBranch):
            raise NoClosedFormError(f"{block} has no linear branch")
        if self.projector is not None and self.head is not None and not _can_be_identity(self.head):
            raise NoClosedFormError(f"{self.head} cannot pass a vector on unchanged")
        if self.pooling.mode == "max":
            raise NoClosedFormError("a maximum over tokens is not linear")
        return branch

    def read(self, frozen: Features) -> Tensor:
        """Return what the linear branch sees of a batch of frozen features: (B, width)."""
        features = to_device(frozen, self.branch.device)
        if self.projector is None:
            return self.branch.prepared(self.tower.pooled(features))
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
        if isinstance(self.head, ProjectionHead) and isinstance(mlp := self.head.projection, ResidualMLP):
            mlp.set_identity()


def _projection(block: TokenProjector | ProjectionHead | KernelHead) -> nn.Module:
    """Return the projection that carries the closed form: CLS's where there is one."""
    if isinstance(block, KernelHead):
        return block
    if isinstance(block, ProjectionHead):
        return block.projection
    return block.tokens if block.cls_token is None else block.cls_token


def _can_be_identity(head: ProjectionHead | KernelHead) -> bool:
    is_mlp = isinstance(head, ProjectionHead) and isinstance(head.projection, ResidualMLP)
    return is_mlp and head.in_dim == head.out_dim
