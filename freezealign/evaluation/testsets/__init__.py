"""Public evaluation data in the formats it comes in, as what the evaluators take."""

from __future__ import annotations

from freezealign.evaluation.testsets.base import CaptionedImages, ClassifiedImages, MaskedImages, TestSet
from freezealign.evaluation.testsets.clip_benchmark import (
    benchmark_class_names,
    benchmark_templates,
    read_benchmark_captions,
    read_benchmark_classes,
)
from freezealign.evaluation.testsets.folders import read_class_folders, read_masks, read_voc

__all__ = [
    "CaptionedImages",
    "ClassifiedImages",
    "MaskedImages",
    "TestSet",
    "benchmark_class_names",
    "benchmark_templates",
    "read_benchmark_captions",
    "read_benchmark_classes",
    "read_class_folders",
    "read_masks",
    "read_voc",
]
