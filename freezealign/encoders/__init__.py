"""Frozen encoders: one small adapter per kind, found by name, wrapped as the first block of a tower."""

from __future__ import annotations

from freezealign.encoders.base import Encoder, EncoderReference
from freezealign.encoders.frozen import FrozenEncoder
from freezealign.encoders.joint import JointEncoder

__all__ = ["Encoder", "EncoderReference", "FrozenEncoder", "JointEncoder"]
