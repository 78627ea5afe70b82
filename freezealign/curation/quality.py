"""Quality: captions of a length or a language, pictures and captions that go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from freezealign.curation.filters import Filter, chunks, each, same_pairs
from freezealign.curation.pools import Pool
from freezealign.vectors import unit
from freezealign.words import count_words


@dataclass(frozen=True)
class CaptionLength(Filter):
    """Captions of so many words; those of scripts without spaces count by the character.

    Raises:
        ValueError: If no caption can be so long.
    """

    fewest: int = 1
    most: int | None = None
    name = "caption length"
    needs = ("caption",)

    def __post_init__(self) -> None:
        if self.fewest < 0 or (self.most is not None and self.most < max(1, self.fewest)):
            raise ValueError(f"no caption has at least {self.fewest} and at most {self.most} words.")

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which captions are long and short enough; where there is none, it has no word."""
        counts = np.array([count_words(caption or "") for caption in each(pool, rows, "caption")], np.int64)
        return (counts >= self.fewest) & (counts <= (np.inf if self.most is None else self.most))


@dataclass(frozen=True)
class Language(Filter):
    """Captions that are not clearly in another language; short ones rarely are clearly in any.

    Args:
        languages: ISO 639-1 codes of those wanted.
        certainty: Probability from which on py3langid's guess counts.

    Raises:
        ModuleNotFoundError: If py3langid is not installed.
        ValueError: If it does not know a language.
    """

    languages: tuple[str, ...]
    certainty: float = 0.8
    name = "language"
    needs = ("caption",)

    def __post_init__(self) -> None:
        known = self._identifier().labels
        if unknown := sorted(set(self.languages) - set(known)):
            raise ValueError(f"no language {unknown} is known to py3langid; it knows {sorted(known)}.")

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which captions are in a wanted language, or not clearly in another."""
        identifier = self._identifier()
        found = (identifier.classify(caption or "") for caption in each(pool, rows, "caption"))
        return np.array([code in self.languages or p < self.certainty for code, p in found], bool)

    @staticmethod
    def _identifier() -> Any:
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ModuleNotFoundError:
            raise ModuleNotFoundError("the language filter needs: pip install 'freezealign[web]'") from None
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@dataclass(frozen=True)
class StatedSimilarity(Filter):
    """Pairs whose image and caption are alike, by the ``similarity`` that the pool states; unknown is too little."""

    lowest: float
    name = "stated image–text similarity"
    needs = ("similarity",)

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are alike enough."""
        stated = (np.nan if value is None else float(value) for value in each(pool, rows, "similarity"))
        return np.fromiter(stated, np.float64, len(rows)) >= self.lowest


@dataclass(frozen=True)
class Similarity(Filter):
    """Pairs whose image and caption are alike, by the cosine of their vectors.

    Args:
        lowest: The least cosine.
        image: The pool's images in one space with ``text``, as CLIP gives them.
        text: The pool's captions.

    Raises:
        ValueError: If the two are not of the same pairs, or of unequal width.
    """

    lowest: float
    image: Pool
    text: Pool
    name = "image–text similarity"

    def __post_init__(self) -> None:
        shapes = [(len(pool), pool.width) for pool in (self.image, self.text)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"images and captions need vectors of the same pairs in one space, got {shapes}.")

    def check(self, pool: Pool) -> None:
        """Raise a ``ValueError`` if the vectors are not of this pool's pairs."""
        same_pairs(pool, self.image)

    def request(self) -> dict[str, Any]:
        """Return the settings, and which vectors they apply to."""
        return {"lowest": self.lowest, "pools": [self.image.fingerprint, self.text.fingerprint]}

    def keep(self, pool: Pool, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return which pairs are alike enough."""
        parts = [np.zeros(0)]
        for some in chunks(rows):
            images, texts = (unit(one.vectors.take(some)) for one in (self.image, self.text))
            parts.append((images * texts).sum(1).numpy())
        return np.concatenate(parts) >= self.lowest
