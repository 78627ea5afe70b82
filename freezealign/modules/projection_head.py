"""ProjectionHead: one more map, applied to the pooled vector."""

from __future__ import annotations

from typing import ClassVar

from freezealign.batch import Features
from freezealign.modules.base import Module, require
from freezealign.modules.projection import ProjectionKind, fit_input, make_projection


class ProjectionHead(Module):
    """Project ``sentence_embedding`` (..., in_dim) to (..., out_dim).

    Args:
        in_dim: Width of the pooled vector.
        out_dim: Width of the shared space; 1024 in the paper.
        kind: ``mlp`` (the paper's text head), ``token``, ``linear``, ``glu`` or ``identity``.
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
