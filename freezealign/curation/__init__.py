"""Curation: a balanced, deduplicated, documented training set out of a web-scale pool."""

from __future__ import annotations

from freezealign.curation.card import Curation
from freezealign.curation.duplicates import THRESHOLD, Leaks, NearDuplicates, Similarity
from freezealign.curation.engines import score_pool
from freezealign.curation.filters import CaptionLength, EqualCaptions, Filter, Language, StatedSimilarity
from freezealign.curation.pipeline import curate
from freezealign.curation.pools import Pool, open_pool
from freezealign.curation.prototypes import Prototypes, labelled_dataset, labelled_pictures, read_concepts
from freezealign.curation.scoring import Scores, Scoring
from freezealign.curation.selection import Selection, mixing_weights, select_balanced
from freezealign.curation.subset import find_shards, write_subset
from freezealign.curation.top_k import TopK

__all__ = [
    "THRESHOLD", "CaptionLength", "Curation", "EqualCaptions", "Filter", "Language", "Leaks", "NearDuplicates", "Pool",
    "Prototypes", "Scores", "Scoring", "Selection", "Similarity", "StatedSimilarity", "TopK", "curate", "find_shards",
    "labelled_dataset", "labelled_pictures", "mixing_weights", "open_pool", "read_concepts", "score_pool",
    "select_balanced", "write_subset",
]  # fmt: skip
