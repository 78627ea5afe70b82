"""Frozen features: computed once, used as often as wanted."""

from __future__ import annotations

from freezealign.features.beside import join_encoders
from freezealign.features.embeddings import open_embeddings
from freezealign.features.frozen import FrozenFeatures, Origin
from freezealign.features.shard import SHARD_SIZES, Level, StoreDtype
from freezealign.features.store import FeatureStore

__all__ = [
    "SHARD_SIZES",
    "FeatureStore",
    "FrozenFeatures",
    "Level",
    "Origin",
    "StoreDtype",
    "join_encoders",
    "open_embeddings",
]
