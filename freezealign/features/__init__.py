"""Frozen features: computed once, used as often as wanted."""

from __future__ import annotations

from freezealign.features.frozen import FrozenFeatures
from freezealign.features.store import FeatureStore, Skipped

__all__ = ["FeatureStore", "FrozenFeatures", "Skipped"]
