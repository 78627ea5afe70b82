"""Sample data: real pictures with names in many languages that need no download from a hub, and scenes made of them."""

from __future__ import annotations

from freezealign.samples.openmoji import load_openmoji
from freezealign.samples.sample import Sample, SampleSet, hash_fold, pairs
from freezealign.samples.scenes import Scenes, compose_scenes
from freezealign.samples.tuxpaint import load_tuxpaint

__all__ = ["Sample", "SampleSet", "Scenes", "compose_scenes", "hash_fold", "load_openmoji", "load_tuxpaint", "pairs"]
