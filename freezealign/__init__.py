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
    "JointEncoder": "freezealign.encoders",
    "TokenProjector": "freezealign.modules",
    "Pooling": "freezealign.modules",
    "ProjectionHead": "freezealign.modules",
    "KernelHead": "freezealign.modules",
    "RelativeHead": "freezealign.modules",
    "Normalize": "freezealign.modules",
    "LogitScale": "freezealign.modules",
    "register_encoder": "freezealign.encoders.registry",
    "register_modality": "freezealign.modality",
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

if TYPE_CHECKING:  # under the same name again: for type checkers that makes it public
    from freezealign.alignment import rank_encoders as rank_encoders
    from freezealign.encoders import FrozenEncoder as FrozenEncoder
    from freezealign.encoders import JointEncoder as JointEncoder
    from freezealign.encoders.registry import list_encoders as list_encoders
    from freezealign.encoders.registry import register_encoder as register_encoder
    from freezealign.evaluation import CKAEvaluator as CKAEvaluator
    from freezealign.evaluation import LongContextEvaluator as LongContextEvaluator
    from freezealign.evaluation import RetrievalEvaluator as RetrievalEvaluator
    from freezealign.evaluation import SegmentationEvaluator as SegmentationEvaluator
    from freezealign.evaluation import SequentialEvaluator as SequentialEvaluator
    from freezealign.evaluation import ZeroShotClassificationEvaluator as ZeroShotClassificationEvaluator
    from freezealign.features import FeatureStore as FeatureStore
    from freezealign.modality import register_modality as register_modality
    from freezealign.model import FreezeAlign as FreezeAlign
    from freezealign.modules import KernelHead as KernelHead
    from freezealign.modules import LogitScale as LogitScale
    from freezealign.modules import Normalize as Normalize
    from freezealign.modules import Pooling as Pooling
    from freezealign.modules import ProjectionHead as ProjectionHead
    from freezealign.modules import RelativeHead as RelativeHead
    from freezealign.modules import TokenProjector as TokenProjector
    from freezealign.training import ContrastiveLoss as ContrastiveLoss
    from freezealign.training import FitArguments as FitArguments
    from freezealign.training import SigmoidLoss as SigmoidLoss


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'freezealign' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
