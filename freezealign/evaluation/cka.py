"""How alike the image and the text side of a model's space are, as alignment measures see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from freezealign.alignment import Measure, measure_alignment
from freezealign.alignment.registry import find_measure
from freezealign.evaluation.base import owners_mean
from freezealign.evaluation.retrieval import CaptionedImagesEvaluator, Captions


class CKAEvaluator(CaptionedImagesEvaluator):
    """Alignment of image embeddings with those of their captions: unbiased CKA and mutual k-nearest neighbours.

    Several captions of an image count as one, their mean. To compare encoders before training, see
    :func:`freezealign.rank_encoders`.

    Args:
        images, captions, name, batch_size, show_progress_bar, modalities: As
            :class:`~freezealign.RetrievalEvaluator` has them.
        metrics: Names in :data:`freezealign.alignment.METRICS`, or measures; the first is the primary one.
    """

    protocol = (
        "embeddings of length 1, the mean of an image's captions; 95% interval from random halves, chance and "
        "calibrated score from 200 permutations"
    )

    def __init__(
        self,
        images: Any,
        captions: Captions | Mapping[str, Captions],
        name: str = "",
        metrics: Sequence[str | Measure] = ("cka", "mutual_knn"),
        batch_size: int = 32,
        show_progress_bar: bool = True,
        modalities: tuple[str, str] = ("image", "text"),
    ) -> None:
        super().__init__(images, captions, name, batch_size, show_progress_bar)
        self.modalities = modalities
        self.measures = [find_measure(metric) for metric in metrics]
        if not self.measures:
            raise ValueError("name at least one metric.")
        self.columns = [measure.name for measure in self.measures]

    def scores(self, images: Tensor, texts: Tensor, owners: Tensor) -> dict[str, float]:
        """Return each metric with its interval, chance and calibrated score, and n; arguments as the base has them."""
        shown, place = owners.unique(return_inverse=True)
        means = owners_mean(texts, place, len(shown))
        sides, bar = (normalize(images[shown], dim=-1), normalize(means, dim=-1)), self.options["show_progress_bar"]
        found: dict[str, float] = {"n": len(shown)}
        for measure in self.measures:
            score = asdict(measure_alignment(*sides, measure, show_progress_bar=bar))
            found[measure.name] = score["value"]
            found |= {f"{measure.name}_{key}": score[key] for key in ("low", "high", "chance", "calibrated", "p_value")}
        return found
