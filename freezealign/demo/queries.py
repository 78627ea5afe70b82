"""One picture: queries in several scripts, each with its five nearest images."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freezealign.figures import new_figure, save_figure
from freezealign.images import read_image
from freezealign.samples import Sample

if TYPE_CHECKING:
    from freezealign.model import FreezeAlign

BEST = 5


def draw_queries(
    path: Path, model: FreezeAlign, samples: Sequence[Sample], images: Any, languages: Sequence[str]
) -> None:
    """Draw one query a language, the five best images with their cosine, and a frame round the right one.

    The queries are not chosen by result: sample number i of the list, evenly spaced, is asked in language number i, or
    the first sample that has a caption in it.

    Args:
        path: The PNG to write.
        model: Embeds queries and images.
        samples: The held-out samples.
        images: Their images, or their frozen features, in the same order.
        languages: Languages to ask in; those that the data lacks are left out.
    """
    languages = [language for language in languages if any(language in sample.captions for sample in samples)]
    asked = []
    for number, language in enumerate(languages):
        places = (samples[len(samples) * number // len(languages)], *samples)
        asked.append(next(sample for sample in places if language in sample.captions))
    texts = [sample.captions[language] for sample, language in zip(asked, languages)]
    scores = model.similarity(model.encode_text(texts), model.encode_image(images, show_progress_bar=False))
    figure = new_figure(11, 1.5 * len(languages))
    axes = figure.subplots(len(languages), BEST + 1, squeeze=False, width_ratios=[2.2] + [1] * BEST)
    for row, (sample, language) in enumerate(zip(asked, languages)):
        _draw_text(axes[row][0], sample, language)
        values, indices = scores[row].topk(BEST)
        for axis, value, index in zip(axes[row][1:], values.tolist(), indices.tolist()):
            _draw_image(axis, samples[index], value, right=samples[index] is sample)
    save_figure(figure, path, dpi=100)


def _draw_text(axis: Any, sample: Sample, language: str) -> None:
    axis.axis("off")
    axis.text(1, 0.55, _wrap(sample.captions[language]), ha="right", va="center", fontsize=13)
    gloss = "" if language == "en" else _wrap(sample.captions["en"], 44)
    axis.text(1, 0.08, f"{language}  {gloss}", ha="right", va="center", fontsize=8, color="gray")


def _draw_image(axis: Any, sample: Sample, score: float, right: bool) -> None:
    axis.imshow(read_image(sample.image))
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(f"{score:.2f}", fontsize=9, color="green" if right else "black")
    for spine in axis.spines.values():
        spine.set(color="green" if right else "lightgray", linewidth=3 if right else 0.5)


def _wrap(text: str, width: int = 28) -> str:
    return "\n".join(textwrap.wrap(text, width)[:3])
