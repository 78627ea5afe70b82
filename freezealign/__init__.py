"""freezealign: one embedding space out of frozen unimodal encoders.

Names are loaded on first use: ``import freezealign`` loads neither torch nor sentence-transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "FreezeAlign": "freezealign.model",
    "FrozenEncoder": "freezealign.encoders",
    "TokenProjector": "freezealign.modules",
    "Pooling": "freezealign.modules",
    "ProjectionHead": "freezealign.modules",
    "KernelHead": "freezealign.modules",
    "RelativeHead": "freezealign.modules",
    "Normalize": "freezealign.modules",
    "LogitScale": "freezealign.modules",
    "register_encoder": "freezealign.encoders.registry",
    "list_encoders": "freezealign.encoders.registry",
    "FeatureStore": "freezealign.features",
    "ContrastiveLoss": "freezealign.training",
    "SigmoidLoss": "freezealign.training",
    "FitArguments": "freezealign.training",
    "rank_encoders": "freezealign.alignment",
    "CKAEvaluator": "freezealign.evaluation",
    "LongContextEvaluator": "freezealign.evaluation",
    "RetrievalEvaluator": "freezealign.evaluation",
    "SegmentationEvaluator": "freezealign.evaluation",
    "SequentialEvaluator": "freezealign.evaluation",
    "ZeroShotClassificationEvaluator": "freezealign.evaluation",
}

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604

if TYPE_CHECKING:
    from freezealign.alignment import rank_encoders
    from freezealign.encoders import FrozenEncoder
    from freezealign.encoders.registry import list_encoders, register_encoder
    from freezealign.evaluation import (
        CKAEvaluator,
        LongContextEvaluator,
        RetrievalEvaluator,
        SegmentationEvaluator,
        SequentialEvaluator,
        ZeroShotClassificationEvaluator,
    )
    from freezealign.features import FeatureStore
    from freezealign.model import FreezeAlign
    from freezealign.modules import KernelHead, LogitScale, Normalize, Pooling, ProjectionHead, TokenProjector
    from freezealign.training import ContrastiveLoss, FitArguments, SigmoidLoss


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'freezealign' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
