"""Zero-shot classification: the class whose name is nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezealign.evaluation.base import Evaluator, Results, all_prefixed, embed
from freezealign.evaluation.metrics import nearest, positive_ranks, scored
from freezealign.evaluation.pictures import draw_confusion
from freezealign.evaluation.prompts import ClassNames, ClassPrompts, Templates
from freezealign.inputs import shorten


class ZeroShotClassificationEvaluator(Evaluator):
    """Top-k accuracy over class names that were never trained on.

    A class vector is the mean of its prompts' unit vectors, made a unit vector again (Radford et al. 2021). Where a
    language has no name for a class, the class and its images are left out of that language.

    Args:
        images: The images, in any form ``encode_image`` takes.
        labels: (n,) index of each image's class.
        class_names: The C names, ``None`` where a language has none; or such a list for each language.
        templates: Prompts with ``{}`` (or ``{c}``) where the name goes, or functions from the name to the prompt; or
            such a list for each language.
        descriptions: For each class name sentences that replace the templates; see
            :class:`~freezealign.evaluation.prompts.ClassPrompts`.
        name: Put in front of every metric.
        ks: Ranks to report.
        renormalize: ``False`` leaves the mean as it is, as the paper's code does.
        batch_size: Items a forward pass.
        show_progress_bar: Show progress if it takes longer than a second.

    Raises:
        ValueError: If a label is no index of a class, the numbers of images and labels differ, or prompts cannot be
            made.
    """

    def __init__(
        self,
        images: Any,
        labels: Sequence[int] | np.ndarray,
        class_names: ClassNames | Mapping[str, ClassNames],
        templates: str | Templates | Mapping[str, Templates] = ("{}",),
        descriptions: Mapping[str, Sequence[str]] | None = None,
        name: str = "",
        ks: Sequence[int] = (1, 5),
        renormalize: bool = True,
        batch_size: int = 32,
        show_progress_bar: bool = True,
    ) -> None:
        super().__init__(name, batch_size, show_progress_bar)
        if len(images) != len(labels) or not len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels.")
        self.images, self.labels = images, class_indices(labels)
        self.prompts = ClassPrompts(class_names, templates, descriptions, renormalize)
        self.ks, self.languages = tuple(ks), self.prompts.languages
        self.columns = [*(f"top{k}" for k in self.ks), "mean_per_class"]
        if int(self.labels.min()) < 0:
            raise ValueError(f"label {int(self.labels.min())} is negative; a label is the index of a class.")
        if int(self.labels.max()) >= self.prompts.count:
            raise ValueError(
                f"label {int(self.labels.max())} has no name among the {self.prompts.count} {self.languages[0]} names."
            )

    def evaluate(self, model: Any, folder: Path | None = None) -> Results:
        """Return for each language ``topk``, ``mean_per_class`` (of top-1), the number of classes, and n.

        Draws the confusion matrix of the first language.
        """
        images = embed(model, "image", self.images, **self.options)
        results: Results = {"protocol": self.prompts.protocol}
        for language in self.languages:
            named = self.prompts.named(language)
            places = torch.full((self.prompts.count,), -1)  # of a class among those with a name
            places[named] = torch.arange(len(named))
            shown = (places[self.labels] >= 0).nonzero().flatten()
            labels = places[self.labels[shown]]
            if not len(shown):
                raise ValueError(f"no image has a class with a name in '{language}'.")
            classes = self.prompts.vectors(model, language, **self.options)
            results |= all_prefixed(language, self._scores(images[shown], labels.to(images.device), classes))
            if folder is not None and language == self.languages[0]:
                names = [str(self.prompts.class_names[language][index]) for index in named]
                predicted = nearest(images[shown], classes).cpu().numpy()
                draw_confusion(folder / "confusion.png", names, labels.numpy(), predicted)
        return results

    def _scores(self, images: Tensor, labels: Tensor, classes: Tensor) -> Results:
        ranks = positive_ranks(images, classes, labels, torch.arange(len(classes), device=images.device))
        totals, right = labels.bincount(), labels.bincount(weights=(ranks < 1).to(torch.float64))
        scores: Results = {"n_images": len(images), "n_classes": len(classes)}
        scores["mean_per_class"] = float((right[totals > 0] / totals[totals > 0]).mean())
        for k in self.ks:
            scores |= scored(f"top{k}", (ranks < k).cpu().numpy(), min(1.0, k / len(classes)))
        return scores


def class_indices(labels: Any) -> Tensor:
    """Return labels (n,) as integers.

    Raises:
        ValueError: If they are no whole numbers, one an image.
    """
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0, 0)
    if found.ndim != 1 or found.is_complex():
        raise ValueError(
            f"labels are whole numbers, one an image, the index of its class; got {shorten(labels)}. Of names make "
            "them with [class_names.index(name) for name in labels]."
        )
    if found.is_floating_point() and not bool((found == found.round()).all()):
        raise ValueError(f"a label is the index of a class, and {float(found[found != found.round()][0])} is none.")
    return found.long()
