"""Normalize: onto the unit sphere, where cosine similarity is a dot product."""

from __future__ import annotations

from torch.nn import functional

from freezealign.batch import Features
from freezealign.modules.base import Module, require


class Normalize(Module):
    """Divide ``sentence_embedding`` (..., d) by its L2 norm."""

    def forward(self, features: Features) -> Features:
        """Replace ``sentence_embedding`` by its unit-length version."""
        embedding = require(features, "sentence_embedding", self, "put a Pooling before it.")
        return {**features, "sentence_embedding": functional.normalize(embedding, p=2, dim=-1)}
