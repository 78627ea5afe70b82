"""Pairs from a path: a folder of pictures, a table, webdataset shards."""

from freezealign.data.sources.open import open_pairs
from freezealign.data.sources.source import PairSource

__all__ = ["PairSource", "open_pairs"]
