"""What evaluators of captioned images share: captions by language, and features computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from freezealign.evaluation.base import Evaluator, Results, all_prefixed, by_language, embed
from freezealign.features import FrozenFeatures
from freezealign.inputs import shorten

Captions = Sequence[str | Sequence[str] | None]


class CaptionedImagesEvaluator(Evaluator):
    """Base of the evaluators that compare images with their captions; a subclass implements :meth:`scores`.

    Its arguments are those of :class:`~freezealign.RetrievalEvaluator`.
    """

    protocol: str

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

        Args:
            model: A :class:`~freezealign.FreezeAlign`, for its ``extract_features``; others may follow that share its
                encoders.
            path: Folder to keep the features in; a second call finds them there.
        """
        if not any(isinstance(texts, FrozenFeatures) for texts in self.texts.values()):
            texts = self._frozen(model, "text", [text for texts in self.texts.values() for text in texts], path)
            ends = np.cumsum([len(texts) for texts in self.texts.values()])
            for (language, old), end in zip(list(self.texts.items()), ends):
                self.texts[language] = texts[end - len(old) : end]
        self._precompute_images(model, path)
        return self

    def _precompute_images(self, model: Any, path: str | Path | None) -> None:
        if not isinstance(self.images, FrozenFeatures):
            self.images = self._frozen(model, "image", self.images, path)

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
        images = embed(model, "image", self.images, **self.options)
        results: Results = {"protocol": self.protocol}
        for language, texts in self.texts.items():
            results |= all_prefixed(language, self.language_scores(model, images, language, texts))
        return results

    def language_scores(self, model: Any, images: Tensor, language: str, texts: Any) -> dict[str, Any]:
        """Return what :meth:`scores` gives for the captions of a language, or for ``texts`` in their places."""
        owners = torch.tensor(self.owners[language], device=images.device)
        return self.scores(images, embed(model, "text", texts, **self.options), owners)

    def scores(self, images: Tensor, texts: Tensor, owners: Tensor) -> dict[str, Any]:
        """Evaluate one language.

        Args:
            images: (n, d) embeddings of all images.
            texts: (m, d) embeddings of the captions.
            owners: (m,) which image each caption belongs to, in ascending order.
        """
        raise NotImplementedError


def captions_of(index: int, given: Any) -> list[str]:
    """Return the captions of image number ``index``: a text, several, or ``None``.

    Raises:
        ValueError: If they are anything else.
    """
    texts = [] if given is None else list(given) if isinstance(given, (list, tuple, np.ndarray)) else [given]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(
                f"the caption of image {index} is {shorten(text)} ({type(text).__name__}); pass a text, a list of "
                "texts, or None where there is none."
            )
    return texts
