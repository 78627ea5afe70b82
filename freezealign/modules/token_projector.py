"""TokenProjector: project every token of a frozen encoder, and its CLS vector with weights of its own."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from freezealign.batch import Features
from freezealign.modules.base import Module, require
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
        kind: ``token`` (the paper's), ``mlp``, ``linear``, ``glu`` or ``identity``; see
            :mod:`freezealign.modules.projection`.
        cls: Also project ``cls_token_embeddings`` (B, in_dim), with its own weights.
        dropout: Dropout probability inside the projector, active in training only.
    """

    config_keys: ClassVar[list[str]] = ["in_dim", "out_dim", "kind", "cls", "dropout"]

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 1024,
        kind: ProjectionKind = "token",
        cls: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_dim, self.out_dim, self.kind, self.cls, self.dropout = in_dim, out_dim, kind, cls, dropout
        self.tokens = make_projection(kind, in_dim, out_dim, dropout)
        self.cls_token = make_projection(kind, in_dim, out_dim, dropout) if cls else None

    def forward(self, features: Features) -> Features:
        """Replace the encoder's token (and CLS) embeddings by projected ones.

        Raises:
            ValueError: If tokens (or, with ``cls=True``, the CLS vector) are absent, or the width is not ``in_dim``.
        """
        tokens = require(features, "token_embeddings", self, "put a FrozenEncoder before it.")
        frozen = ("cls_token_embeddings", "sentence_embedding")
        output = {key: value for key, value in features.items() if key not in frozen}
        output["token_embeddings"] = self.tokens(fit_input(tokens, self.in_dim, self))
        if self.cls_token is not None:
            output["cls_token_embeddings"] = self._project_cls(features)
        return output

    def pooled(self, features: Features, pooling: Pooling) -> Features:
        """Return what ``pooling`` gives after this, to rounding, but with far less work where it takes a mean.

        Only where :meth:`can_pool` says so.
        """
        assert isinstance(self.tokens, NormedBranches)
        tokens = require(features, "token_embeddings", self, "put a FrozenEncoder before it.")
        pooled = self.tokens.mean(fit_input(tokens, self.in_dim, self), pooling.mask(features))
        if pooling.mode == "cls+patch_mean":
            pooled = pooled + self._project_cls(features)
        return {"sentence_embedding": pooled}

    def can_pool(self, pooling: Pooling) -> bool:
        """Whether :meth:`pooled` stands for this and ``pooling``."""
        with_cls = pooling.mode == "cls+patch_mean"
        return isinstance(self.tokens, NormedBranches) and (
            pooling.mode in ("mean", "patch_mean") or (with_cls and self.cls_token is not None)
        )

    def _project_cls(self, features: Features) -> Tensor:
        assert self.cls_token is not None
        cls = require(features, "cls_token_embeddings", self, "this encoder has no CLS vector; use cls=False.")
        projected: Tensor = self.cls_token(fit_input(cls, self.in_dim, self))
        return projected

    def get_embedding_dimension(self) -> int:
        """Return the output width."""
        return self.out_dim
