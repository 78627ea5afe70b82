"""The blocks a model is built from; each can be used by hand."""

from __future__ import annotations

from freezealign.modules.base import Module
from freezealign.modules.landmarks import KernelHead, RelativeHead
from freezealign.modules.logit_scale import LogitScale
from freezealign.modules.pooling import Normalize, Pooling
from freezealign.modules.projectors import ProjectionHead, TokenProjector

__all__ = [
    "KernelHead",
    "LogitScale",
    "Module",
    "Normalize",
    "Pooling",
    "ProjectionHead",
    "RelativeHead",
    "TokenProjector",
]
