"""The blocks a model is built from; each can be used by hand."""

from __future__ import annotations

from freezealign.modules.base import Module
from freezealign.modules.kernel_head import KernelHead
from freezealign.modules.logit_scale import LogitScale
from freezealign.modules.normalize import Normalize
from freezealign.modules.pooling import Pooling
from freezealign.modules.projection_head import ProjectionHead
from freezealign.modules.relative_head import RelativeHead
from freezealign.modules.token_projector import TokenProjector

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
