"""Public evaluation data in the formats it comes in, as what the evaluators take."""

from __future__ import annotations

from freezealign.evaluation.testsets.base import CaptionedImages, ClassifiedImages, MaskedImages
from freezealign.evaluation.testsets.clip_benchmark import read_benchmark_captions, read_benchmark_classes
from freezealign.evaluation.testsets.folders import read_class_folders, read_voc
from freezealign.evaluation.testsets.mask_columns import read_masks
from freezealign.evaluation.testsets.prompts import benchmark_class_names, benchmark_templates

__all__ = [
    "CaptionedImages",
    "ClassifiedImages",
    "MaskedImages",
    "benchmark_class_names",
    "benchmark_templates",
    "read_benchmark_captions",
    "read_benchmark_classes",
    "read_class_folders",
    "read_masks",
    "read_voc",
]
