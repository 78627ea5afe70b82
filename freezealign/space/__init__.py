"""A space: towers that end in one width, and how items become vectors there."""

from __future__ import annotations

from freezealign.space.space import Space
from freezealign.space.tower import TokenEmbeddings, Tower

__all__ = ["Space", "TokenEmbeddings", "Tower"]
