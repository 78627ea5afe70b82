"""Evaluators: callables with sentence-transformers' signature that name their protocol."""

from __future__ import annotations

from freezealign.evaluation.base import Evaluator
from freezealign.evaluation.cka import CKAEvaluator
from freezealign.evaluation.retrieval import RetrievalEvaluator
from freezealign.evaluation.zero_shot import ZeroShotClassificationEvaluator

__all__ = ["CKAEvaluator", "Evaluator", "RetrievalEvaluator", "ZeroShotClassificationEvaluator"]
