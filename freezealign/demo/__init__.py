"""The main job on real input: train on English names only, then ask in fourteen languages."""

from __future__ import annotations

from freezealign.demo.run import run_demo

__all__ = ["run_demo"]
