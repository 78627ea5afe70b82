"""Blocks that project: every token and the CLS vector of a frozen encoder, or the pooled vector."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from freezealign.batch import Features
from freezealign.modules.base import Module, check_options, require
from freezealign.modules.pooling import Pooling
from freezealign.modules.projection import NormedBranches, ProjectionKind, fit_input, make_projection


class TokenProjector(Module):
    """Project ``token_embeddings`` (B, T, in_dim) to (B, T, out_dim).

    With ``cls=True`` the CLS vector gets a second, separate projector: DINO's loss acts on CLS and iBOT's on patches,
    so the two live in different spaces. With ``cls=False`` the CLS vector is dropped, because an unprojected one must
    not be pooled together with projected tokens.

    Args:
        in_dim: Width of the encoder.
        out_dim: Width of the shared space; 1024 in the paper.
        kind: ``linear+mlp`` (the paper's), ``glu``, ``mlp``, ``linear`` or ``identity``; see
            :mod:`freezealign.modules.projection`.
        cls: Also project ``cls_token_embeddings`` (B, in_dim), with its own weights.
        dropout: Dropout probability inside the projector, active in training only.
    """

    config_keys: ClassVar[list[str]] = ["in_dim", "out_dim", "kind", "cls", "dropout"]

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 1024,
        kind: ProjectionKind = "linear+mlp",
        cls: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_options(cls=cls)
        self.in_dim, self.out_dim, self.kind, self.cls, self.dropout = in_dim, out_dim, kind, cls, dropout
        self.tokens = make_projection(kind, in_dim, out_dim, dropout)
        self.cls_token = make_projection(kind, in_dim, out_dim, dropout) if cls else None

    def forward(self, features: Features) -> Features:
        """Replace the encoder's token (and CLS) embeddings by projected ones.

        Raises:
            ValueError: If tokens (or, with ``cls=True``, the CLS vector) are absent, or the width is not ``in_dim``.
        """
        frozen = ("cls_token_embeddings", "sentence_embedding")
        output = {key: value for key, value in features.items() if key not in frozen}
        output["token_embeddings"] = self.tokens(self._tokens(features))
        if self.cls_token is not None:
            output["cls_token_embeddings"] = self.cls_token(self.cls_input(features))
        return output

    def pooled(self, features: Features, pooling: Pooling) -> Features:
        """Return what ``pooling`` gives after this, to rounding, but with far less work where it takes a mean.

        Only where :meth:`can_pool` says so.
        """
        assert isinstance(self.tokens, NormedBranches)
        pooled = self.tokens.mean(self._tokens(features), pooling.mask(features))
        if self.cls_token is not None and pooling.mode == "cls+patch_mean":
            pooled = pooled + self.cls_token(self.cls_input(features))
        return {"sentence_embedding": pooled}

    def can_pool(self, pooling: Pooling) -> bool:
        """Whether :meth:`pooled` stands for this and ``pooling``."""
        modes = ["mean", "patch_mean"] if self.cls_token is None else ["mean", "patch_mean", "cls+patch_mean"]
        return isinstance(self.tokens, NormedBranches) and pooling.mode in modes

    def _tokens(self, features: Features) -> Tensor:
        tokens = require(features, "token_embeddings", self, "put a FrozenEncoder before it.")
        return fit_input(tokens, self.in_dim, self)

    def cls_input(self, features: Features) -> Tensor:
        """Return the encoder's CLS vectors (B, in_dim), which ``cls_token`` projects."""
        cls = require(features, "cls_token_embeddings", self, "this encoder has no CLS vector; use cls=False.")
        return fit_input(cls, self.in_dim, self)

    def get_embedding_dimension(self) -> int:
        """Return the output width."""
        return self.out_dim


class ProjectionHead(Module):
    """Project ``sentence_embedding`` (..., in_dim) to (..., out_dim).

    Args:
        in_dim: Width of the pooled vector.
        out_dim: Width of the shared space; 1024 in the paper.
        kind: ``mlp`` (the paper's text head), ``linear+mlp``, ``glu``, ``linear`` or ``identity``.
        dropout: Dropout probability inside the head, active in training only.
    """

    config_keys: ClassVar[list[str]] = ["in_dim", "out_dim", "kind", "dropout"]

    def __init__(self, in_dim: int, out_dim: int = 1024, kind: ProjectionKind = "mlp", dropout: float = 0.1) -> None:
        super().__init__()
        self.in_dim, self.out_dim, self.kind, self.dropout = in_dim, out_dim, kind, dropout
        self.projection = make_projection(kind, in_dim, out_dim, dropout)

    def forward(self, features: Features) -> Features:
        """Replace ``sentence_embedding`` by its projection.

        Raises:
            ValueError: If there is no pooled vector, or its width is not ``in_dim``.
        """
        pooled = require(features, "sentence_embedding", self, "put a Pooling before it.")
        return {**features, "sentence_embedding": self.projection(fit_input(pooled, self.in_dim, self))}

    def get_embedding_dimension(self) -> int:
        """Return the output width."""
        return self.out_dim
