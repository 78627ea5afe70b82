"""The main job on real input: train on English names only, then ask in fourteen languages."""

from __future__ import annotations

from freezealign.demo.demo import load_data, run_demo

__all__ = ["load_data", "run_demo"]
