"""Image–text retrieval, in one language or many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezealign.evaluation.base import Evaluator, Results, by_language, prefixed
from freezealign.evaluation.metrics import positive_ranks, scored
from freezealign.features import FrozenFeatures

Captions = Sequence[str | Sequence[str] | None]


class RetrievalEvaluator(Evaluator):
    """R@k from text to image (T2I) and from image to text (I2T).

    T2I: is the one right image among the k nearest? I2T: is any of the image's captions among the k nearest?

    Args:
        images: The images, in any form ``encode_image`` takes.
        captions: For each image a caption, several, or ``None`` where there is none (the image is then left out); or
            such a list for each language. Languages are evaluated apart.
        name: Put in front of every metric.
        ks: Ranks to report.
        batch_size: Items a forward pass.
        show_progress_bar: Show progress if it takes longer than a second.
    """

    def __init__(
        self,
        images: Any,
        captions: Captions | Mapping[str, Captions],
        name: str = "",
        ks: Sequence[int] = (1, 5, 10),
        batch_size: int = 32,
        show_progress_bar: bool = True,
    ) -> None:
        super().__init__(name)
        self.images, self.ks = images, tuple(ks)
        self.options = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
        self.texts: dict[str, Any] = {}
        self.owners: dict[str, list[int]] = {}
        for language, texts in by_language(captions).items():
            if len(texts) != len(images):
                raise ValueError(f"{len(images)} images but {len(texts)} captions{f' in {language}' * bool(language)}.")
            self.texts[language], self.owners[language] = _flatten(texts)
        self._primary = prefixed(next(iter(self.texts)), f"t2i_R@{self.ks[0]}")

    def precompute(self, model: Any, path: str | Path | None = None) -> RetrievalEvaluator:
        """Run the model's frozen encoders over images and captions once, so that later evaluations only project.

        Args:
            model: A :class:`~freezealign.FreezeAlign`, or several in turn that share its encoders.
            path: Folder to keep the features in; a second call finds them there.
        """
        if not any(isinstance(texts, FrozenFeatures) for texts in self.texts.values()):
            texts = self._frozen(model, "text", [text for texts in self.texts.values() for text in texts], path)
            ends = np.cumsum([len(texts) for texts in self.texts.values()])
            for (language, old), end in zip(list(self.texts.items()), ends):
                self.texts[language] = texts[end - len(old) : end]
        if not isinstance(self.images, FrozenFeatures):
            self.images = self._frozen(model, "image", self.images, path)
        return self

    def _frozen(self, model: Any, modality: str, items: Any, path: str | Path | None) -> FrozenFeatures:
        where = None if path is None else Path(path) / modality
        data = [{modality: item} for item in items]
        store = model.extract_features(data, where, modalities=[modality], reuse=True, strict=True, **self.options)
        if len(store) != len(items):
            raise ValueError(f"{where} holds the features of {len(store)} items, not of these {len(items)}.")
        features: FrozenFeatures = store[modality]
        return features

    def evaluate(self, model: Any) -> Results:
        """Return for each language ``t2i_R@k``, ``i2t_R@k``, their medians of ranks, and n."""
        images = model.encode_image(self.images, convert_to_tensor=True, **self.options).float()
        results: Results = {"protocol": "cosine; a tie counts against the model; I2T counts any caption of the image"}
        for language, texts in self.texts.items():
            embeddings = model.encode_text(texts, convert_to_tensor=True, **self.options).float()
            owners = torch.tensor(self.owners[language], device=images.device)
            scores = self._scores(images, embeddings, owners)
            results |= {prefixed(language, key): value for key, value in scores.items()}
        return results

    def _scores(self, images: Tensor, texts: Tensor, owners: Tensor) -> dict[str, float]:
        """Evaluate one language; ``owners`` says which image each text belongs to."""
        shown = owners.unique()
        images = images[shown]
        directions = {
            "t2i": (positive_ranks(texts, images, owners, shown), len(shown), np.ones(len(texts))),
            "i2t": (positive_ranks(images, texts, shown, owners), len(texts), owners.bincount()[shown].cpu().numpy()),
        }
        scores: dict[str, float] = {"n_images": len(shown), "n_texts": len(texts)}
        for direction, (ranks, candidates, positives) in directions.items():
            positions = ranks.cpu().numpy()
            for k in self.ks:
                hits = positions < k
                scores |= scored(f"{direction}_R@{k}", hits, chance_recall(k, candidates, positives))
            scores[f"{direction}_median_rank"] = float(np.median(positions)) + 1
        return scores


def chance_recall(k: int, candidates: int, positives: np.ndarray) -> float:
    """Return R@k of a random order, as the mean over queries with ``positives`` (Q,) right ones each.

    One query misses with the hypergeometric probability that none of its right ones is among k drawn.
    """
    from scipy.stats import hypergeom

    return float(1 - hypergeom.pmf(0, candidates, positives, min(k, candidates)).mean())


def _flatten(captions: Captions) -> tuple[list[str], list[int]]:
    """Return all captions, and which image each belongs to."""
    texts, owners = [], []
    for owner, caption in enumerate(captions):
        for text in [caption] if isinstance(caption, str) else caption or []:
            texts.append(text)
            owners.append(owner)
    if not texts:
        raise ValueError("there is no caption to retrieve with.")
    return texts, owners
