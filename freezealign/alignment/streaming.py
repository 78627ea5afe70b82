"""Alignment of data that comes in batches, or lies on several machines."""

from __future__ import annotations

from typing import Any

from freezealign.alignment.measure import FEW, Measure, MomentMeasure
from freezealign.alignment.registry import find_measure
from freezealign.alignment.sample import PairSample
from freezealign.alignment.significance import PERMUTATIONS, RESAMPLES, AlignmentScore, score_pairs
from freezealign.alignment.vectors import Vectors, check_counts, check_spaces


class Alignment:
    """A measure of alignment as an accumulator: ``update`` with batches, ``merge`` with others, then ``compute``.

    Order and batching change nothing. Measures that follow from sums (``cka``, ``cka_biased``, ``cca``, ``svcca``,
    ``procrustes``) keep O(d²) numbers and a sample of the items, for null and interval. The others need the items
    themselves: O(n d) numbers, in float32.

    Args:
        metric: A name in ``METRICS``, or a :class:`Measure`.
        sample: How many items null and interval are estimated on.
    """

    def __init__(self, metric: str | Measure = "cka", sample: int = FEW) -> None:
        self.measure = find_measure(metric)
        if sample < self.measure.least:
            raise ValueError(
                f"a sample of {sample} is too small: {self.measure.name} needs {self.measure.least} items."
            )
        self.sums = self.measure.moments() if isinstance(self.measure, MomentMeasure) else None
        self.sample = sample
        self.kept = PairSample(sample if self.sums else None)
        self.n = 0

    def update(self, x: Any, y: Any) -> Alignment:
        """Add a batch of pairs: (B, dx) and (B, dy), NumPy or torch. Returns itself.

        Raises:
            ValueError: If counts or widths differ, or a vector holds NaN or infinity; of a batch of more than 4,096
                pairs, those before that vector may have been added.
        """
        x, y = Vectors(x, "x"), Vectors(y, "y")
        check_counts(x, y)
        for batch in zip(x.chunks(), y.chunks()):
            self.kept.add(*batch)
            if self.sums:
                self.sums.update(batch)
            self.n += len(batch[0])
        return self

    def merge(self, other: Alignment) -> Alignment:
        """Add the pairs of another accumulator. Returns itself.

        Raises:
            ValueError: If that is of another measure or sample size, or this one itself.
        """
        if (mine := self._kind()) != (theirs := other._kind()):
            raise ValueError(f"an accumulator of {mine} cannot take one of {theirs}.")
        if other is self:
            raise ValueError("an accumulator cannot be merged with itself: every pair would count twice.")
        self.kept.merge(other.kept)
        if self.sums and other.sums:
            self.sums.merge(other.sums)
        self.n += other.n
        return self

    def _kind(self) -> str:
        options = [f"{key} {value}" for key, value in vars(self.measure).items() if key != "name"]
        return ", ".join([self.measure.name, *options, f"sample {self.sample}"])

    def value(self) -> float:
        """Return the measure of all pairs so far.

        Raises:
            ValueError: If there are too few items, or one space is constant.
        """
        x, y = (Vectors(vectors, name) for vectors, name in zip(self.kept.pairs(), ("x", "y")))
        if self.sums and self.n > len(x):
            assert isinstance(self.measure, MomentMeasure)
            return self.measure.checked(self.measure.value(self.sums))
        check_spaces([x, y], self.measure.least)
        return self.measure.measure_pairs([x], [y], [(0, 0)])[0]

    def compute(
        self,
        permutations: int = PERMUTATIONS,
        resamples: int = RESAMPLES,
        seed: int = 0,
        show_progress_bar: bool = True,
    ) -> AlignmentScore:
        """Return the measure with its null and interval; see :func:`freezealign.alignment.significance.score_pairs`."""
        value = self.value()
        x, y = (vectors[: self.sample] for vectors in self.kept.pairs())
        draws = {"permutations": permutations, "resamples": resamples, "seed": seed}
        return score_pairs(
            self.measure, [value], self.n, [x], [y], [(0, 0)], **draws, show_progress_bar=show_progress_bar
        )[0]


def measure_alignment(x: Any, y: Any, metric: str | Measure = "cka", **options: Any) -> AlignmentScore:
    """Return the alignment of x (n, dx) and y (n, dy) with its null and interval; row i of both is one item.

    Args:
        x: Vectors, NumPy or torch, also memory-mapped.
        y: Likewise.
        metric: A name in ``METRICS``, or a :class:`Measure`.
        **options: Of :meth:`Alignment.compute`.

    Raises:
        ValueError: If the counts differ, there are too few items, one space is constant, or holds NaN.
    """
    return Alignment(metric).update(x, y).compute(**options)
