"""Curation: a balanced, deduplicated, documented training set out of a web-scale pool."""

from __future__ import annotations

from freezealign.curation.duplicates import THRESHOLD, Leaks, NearDuplicates
from freezealign.curation.filters import CaptionLength, EqualCaptions, Filter, Language, Similarity, StatedSimilarity
from freezealign.curation.mixing import mixing_weights
from freezealign.curation.pools import Pool, open_pool
from freezealign.curation.prototypes import Prototypes, labelled_dataset, labelled_pictures
from freezealign.curation.run import Curation, curate
from freezealign.curation.scoring import Scores, Scoring, score_pool
from freezealign.curation.selection import Selection, select_balanced
from freezealign.curation.subset import find_shards, write_subset
from freezealign.curation.top_k import TopK

__all__ = [
    "THRESHOLD",
    "CaptionLength",
    "Curation",
    "EqualCaptions",
    "Filter",
    "Language",
    "Leaks",
    "NearDuplicates",
    "Pool",
    "Prototypes",
    "Scores",
    "Scoring",
    "Selection",
    "Similarity",
    "StatedSimilarity",
    "TopK",
    "curate",
    "find_shards",
    "labelled_dataset",
    "labelled_pictures",
    "mixing_weights",
    "open_pool",
    "score_pool",
    "select_balanced",
    "write_subset",
]  # fmt: skip
