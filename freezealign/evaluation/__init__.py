"""Evaluators: callables with sentence-transformers' signature that name their protocol."""

from __future__ import annotations

from freezealign.evaluation.base import Evaluator, SequentialEvaluator
from freezealign.evaluation.cka import CKAEvaluator
from freezealign.evaluation.long_context import LongContextEvaluator
from freezealign.evaluation.retrieval import RetrievalEvaluator
from freezealign.evaluation.segmentation import SegmentationEvaluator
from freezealign.evaluation.windows import SlidingWindows
from freezealign.evaluation.zero_shot import ZeroShotClassificationEvaluator

__all__ = [
    "CKAEvaluator",
    "Evaluator",
    "LongContextEvaluator",
    "RetrievalEvaluator",
    "SegmentationEvaluator",
    "SequentialEvaluator",
    "SlidingWindows",
    "ZeroShotClassificationEvaluator",
]
