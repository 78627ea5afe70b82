"""The result of a curation: what was selected, and what the data card tells of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from freezealign.curation.pools import Pool
from freezealign.curation.scoring import Scores, Scoring
from freezealign.curation.selection import Selection


@dataclass(frozen=True)
class Curation:
    """What was selected, and what the data card tells of it.

    Args:
        scoring: The pools, the first of which was selected from, and the prototypes.
        per_concept: The most pairs a concept took.
        scores: The candidates.
        filters: What each filter removed.
        selection: The selected rows.
        sample_concepts: (m,) the concept that each row of a random sample of the pool is most like.
        sample_scores: (m,) float32, its score there.
    """

    scoring: Scoring
    per_concept: int
    scores: Scores
    filters: list[dict[str, Any]]
    selection: Selection
    sample_concepts: np.ndarray
    sample_scores: np.ndarray

    @property
    def pool(self) -> Pool:
        """The pool; with several encoders, the first."""
        return self.scoring.pools[0]

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts."""
        return self.scoring.concepts

    @property
    def ids(self) -> list[str]:
        """The ids of the selected pairs, in the order of the selection."""
        return [str(name) for name in self.pool.take(self.selection.rows, "id")]
