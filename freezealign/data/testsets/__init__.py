"""Public evaluation data in the formats it comes in, as what the evaluators take."""

from __future__ import annotations

from freezealign.data.testsets.base import CaptionedImages, ClassifiedImages, MaskedImages
from freezealign.data.testsets.clip_benchmark import read_benchmark_captions, read_benchmark_classes
from freezealign.data.testsets.folders import read_class_folders, read_voc
from freezealign.data.testsets.prompts import benchmark_class_names, benchmark_templates
from freezealign.data.testsets.tables import read_masks

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
