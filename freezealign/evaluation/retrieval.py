"""Images and their captions, in one language or many: what their evaluators share, and retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from freezealign.evaluation.base import Evaluator, Results, all_prefixed, by_language, embed
from freezealign.evaluation.metrics import scored, two_way_ranks
from freezealign.features import FrozenFeatures
from freezealign.inputs import shorten

Captions = Sequence[str | Sequence[str] | None] | np.ndarray | Tensor


class CaptionedImagesEvaluator(Evaluator):
    """Base of the evaluators that compare images with their captions; a subclass implements :meth:`scores`.

    Its arguments are those of :class:`~freezealign.RetrievalEvaluator`.
    """

    protocol: str
    texts_stay = True
    """Whether every evaluation encodes the same texts."""
    modalities: tuple[str, str] = ("image", "text")
    """The towers that take the images and the captions."""

    def __init__(
        self,
        images: Any,
        captions: Captions | Mapping[str, Captions],
        name: str,
        batch_size: int,
        show_progress_bar: bool,
    ) -> None:
        super().__init__(name, batch_size, show_progress_bar)
        self.images = images
        self.texts: dict[str, Any] = {}
        self.owners: dict[str, list[int]] = {}
        for language, given in by_language(captions).items():
            if len(given) != len(images):
                raise ValueError(f"{len(images)} images but {len(given)} captions{f' in {language}' * bool(language)}.")
            lists = [captions_of(index, caption) for index, caption in enumerate(given)]
            self.texts[language] = [text for texts in lists for text in texts]
            self.owners[language] = [owner for owner, texts in enumerate(lists) for _ in texts]
            if not self.texts[language]:
                raise ValueError("there is no caption to retrieve with.")
        self.languages = list(self.texts)

    def precompute(self, model: Any, path: str | Path | None = None) -> Self:
        """Run the model's frozen encoders over images and captions once, so that later evaluations only project.

        Of long context, which encodes its texts anew at each budget, over the images only.

        Args:
            model: A :class:`~freezealign.FreezeAlign`, for its ``extract_features``; others may follow that share its
                encoders.
            path: Folder to keep the features in; a second call finds them there.
        """
        if self.texts_stay and not any(isinstance(texts, FrozenFeatures) for texts in self.texts.values()):
            texts = self._frozen(
                model, self.modalities[1], [text for texts in self.texts.values() for text in texts], path
            )
            ends = np.cumsum([len(texts) for texts in self.texts.values()])
            for (language, old), end in zip(list(self.texts.items()), ends):
                self.texts[language] = texts[end - len(old) : end]
        if not isinstance(self.images, FrozenFeatures):
            self.images = self._frozen(model, self.modalities[0], self.images, path)
        return self

    def _frozen(self, model: Any, modality: str, items: Any, path: str | Path | None) -> FrozenFeatures:
        where = None if path is None else Path(path) / modality
        data = [{modality: item} for item in items]
        store = model.extract_features(data, where, modalities=[modality], reuse=True, strict=True, **self.options)
        if len(store) != len(items):
            raise ValueError(f"{where} holds the features of {len(store)} items, not of these {len(items)}.")
        features: FrozenFeatures = store[modality]
        return features

    def evaluate(self, model: Any, folder: Path | None = None) -> Results:
        """Return for each language what :meth:`scores` gives, and the protocol."""
        images = embed(model, self.modalities[0], self.images, **self.options)
        results: Results = {"protocol": self.protocol}
        for language, texts in self.texts.items():
            results |= all_prefixed(language, self.language_scores(model, images, language, texts))
        return results

    def language_scores(self, model: Any, images: Tensor, language: str, texts: Any) -> dict[str, Any]:
        """Return what :meth:`scores` gives for the captions of a language, or for ``texts`` in their places."""
        owners = torch.tensor(self.owners[language], device=images.device)
        return self.scores(images, embed(model, self.modalities[1], texts, **self.options), owners)

    def scores(self, images: Tensor, texts: Tensor, owners: Tensor) -> dict[str, Any]:
        """Evaluate one language.

        Args:
            images: (n, d) embeddings of all images.
            texts: (m, d) embeddings of the captions.
            owners: (m,) which image each caption belongs to, in ascending order.
        """
        raise NotImplementedError


class RetrievalEvaluator(CaptionedImagesEvaluator):
    """R@k and mean reciprocal rank (MRR), from text to image (T2I) and from image to text (I2T).

    T2I: is the one right image among the k nearest? I2T: is any of the image's captions among the k nearest?

    Args:
        images: The images, in any form ``encode_image`` takes; of a model that takes vectors an array (n, D).
        captions: For each image a caption, several, or ``None`` where there is none (the image is then left out); or
            such a list for each language. Languages are evaluated apart. Vectors as an array (n, D), or (n, k, D).
        name: Put in front of every metric.
        ks: Ranks to report.
        batch_size: Items a forward pass.
        show_progress_bar: Show progress if it takes longer than a second.
        modalities: The towers that take the images and the captions, where they have other names.
    """

    protocol = "cosine; a tie counts against the model; I2T counts any caption of the image"

    def __init__(
        self,
        images: Any,
        captions: Captions | Mapping[str, Captions],
        name: str = "",
        ks: Sequence[int] = (1, 5, 10),
        batch_size: int = 32,
        show_progress_bar: bool = True,
        modalities: tuple[str, str] = ("image", "text"),
    ) -> None:
        super().__init__(images, captions, name, batch_size, show_progress_bar)
        self.modalities = modalities
        self.ks = tuple(ks)
        self.columns = [f"{direction}_R@{k}" for direction in ("t2i", "i2t") for k in self.ks]

    def scores(self, images: Tensor, texts: Tensor, owners: Tensor) -> dict[str, float]:
        """Return ``t2i_R@k``, ``i2t_R@k``, MRR, the median rank, and n; arguments as the base has them."""
        shown, owners, counts = owners.unique(return_inverse=True, return_counts=True)
        images = images if len(shown) == len(images) else images[shown]
        t2i, i2t = two_way_ranks(images, texts, owners)
        directions = {
            "t2i": (t2i, len(images), np.ones(1)),
            "i2t": (i2t, len(texts), counts.cpu().numpy()),
        }
        scores: dict[str, float] = {"n_images": len(images), "n_texts": len(texts)}
        for direction, (ranks, candidates, positives) in directions.items():
            positions = ranks.cpu().numpy()
            for k in self.ks:
                hits = positions < k
                scores |= scored(f"{direction}_R@{k}", hits, chance_recall(k, candidates, positives))
            scores |= scored(f"{direction}_MRR", 1 / (positions + 1), chance_reciprocal_rank(candidates, positives))
            scores[f"{direction}_median_rank"] = float(np.median(positions)) + 1
        return scores


def chance_recall(k: int, candidates: int, positives: np.ndarray) -> float:
    """Return R@k of a random order, as the mean over queries with ``positives`` (Q,) right ones each.

    One query misses with the hypergeometric probability that none of its right ones is among k drawn.
    """
    from scipy.stats import hypergeom

    kinds, counts = np.unique(positives, return_counts=True)  # queries are many, numbers of right ones are few
    return float(1 - np.average(hypergeom.pmf(0, candidates, kinds, min(k, candidates)), weights=counts))


def chance_reciprocal_rank(candidates: int, positives: np.ndarray) -> float:
    """Return the mean reciprocal rank of a random order; arguments as in :func:`chance_recall`."""
    from scipy.stats import nhypergeom

    kinds, counts = np.unique(positives, return_counts=True)
    wrong_before = np.arange(candidates)
    expected = [
        (nhypergeom.pmf(wrong_before, candidates, candidates - kind, 1) / (wrong_before + 1)).sum() for kind in kinds
    ]
    return float(np.average(expected, weights=counts))


def captions_of(index: int, given: Any) -> list[Any]:
    """Return the captions of image number ``index``: a text, several, or ``None``; else raise a ``ValueError``.

    Where the model takes vectors, one (D,) stands for a text, and an array (k, D) for several.
    """
    if isinstance(given, (np.ndarray, Tensor)) and "float" in str(given.dtype):
        return list(given) if given.ndim > 1 else [given]
    texts = [] if given is None else list(given) if isinstance(given, (list, tuple, np.ndarray)) else [given]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(
                f"the caption of image {index} is {shorten(text)} ({type(text).__name__}); pass a text, a list of "
                "texts, or None where there is none."
            )
    return texts
