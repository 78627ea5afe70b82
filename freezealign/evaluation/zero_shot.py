"""Zero-shot classification: the class whose name is nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from freezealign.evaluation.base import Evaluator, Results, by_language, prefixed
from freezealign.evaluation.metrics import positive_ranks, scored


class ZeroShotClassificationEvaluator(Evaluator):
    """Top-k accuracy over class names that were never trained on.

    A class vector is the mean of its prompts' unit vectors, made a unit vector again (Radford et al. 2021).

    Args:
        images: The images, in any form ``encode_image`` takes.
        labels: (n,) index of each image's class.
        class_names: The C names, or such a list for each language.
        templates: Prompts with ``{}`` (or ``{c}``) where the name goes; or such a list for each language.
        name: Put in front of every metric.
        ks: Ranks to report.
        renormalize: ``False`` leaves the mean as it is, as the paper's code does.
        batch_size: Items a forward pass.
        show_progress_bar: Show progress if it takes longer than a second.
    """

    def __init__(
        self,
        images: Any,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str] | Mapping[str, Sequence[str]],
        templates: Sequence[str] | Mapping[str, Sequence[str]] = ("{}",),
        name: str = "",
        ks: Sequence[int] = (1, 5),
        renormalize: bool = True,
        batch_size: int = 32,
        show_progress_bar: bool = True,
    ) -> None:
        super().__init__(name)
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels.")
        self.images, self.labels, self.class_names = images, torch.as_tensor(labels), by_language(class_names)
        templates = [templates] if isinstance(templates, str) else templates
        self.templates = templates if isinstance(templates, Mapping) else dict.fromkeys(self.class_names, templates)
        self.ks, self.renormalize = tuple(ks), renormalize
        self.options = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
        if int(self.labels.min()) < 0:
            raise ValueError(f"label {int(self.labels.min())} is negative; a label is the index of a class.")
        for template in (template for some in self.templates.values() for template in some):
            if "{" not in template:
                raise ValueError(f"the template {template!r} has no {{}} where the class name goes.")
        for language, names in self.class_names.items():
            if len(names) <= int(self.labels.max()):
                raise ValueError(f"label {int(self.labels.max())} has no name among the {len(names)} {language} names.")
            if language not in self.templates:
                raise ValueError(
                    f"there are names in '{language}', but no templates; there are {list(self.templates)}."
                )
        self._primary = prefixed(next(iter(self.class_names)), "top1")

    def evaluate(self, model: Any) -> Results:
        """Return for each language ``topk``, ``mean_per_class`` (of top-1), the number of classes, and n."""
        images = model.encode_image(self.images, convert_to_tensor=True, **self.options).float()
        labels = self.labels.to(images.device)
        results: Results = {"protocol": self._protocol(), "n_images": len(images)}
        for language, names in self.class_names.items():
            classes = self.class_vectors(model, names, self.templates[language])
            ranks = positive_ranks(images, classes, labels, torch.arange(len(names), device=images.device))
            scores: Results = {"n_classes": len(names), "mean_per_class": _mean_per_class(ranks < 1, labels)}
            for k in self.ks:
                scores |= scored(f"top{k}", (ranks < k).cpu().numpy(), min(1.0, k / len(names)))
            results |= {prefixed(language, key): value for key, value in scores.items()}
        return results

    def class_vectors(self, model: Any, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return (C, d) class vectors; all prompts of all classes are encoded together."""
        prompts = [template.format(name, c=name) for name in names for template in templates]
        embeddings = model.encode_text(prompts, convert_to_tensor=True, **self.options).float()
        means = normalize(embeddings, dim=-1).view(len(names), len(templates), -1).mean(1)
        return normalize(means, dim=-1) if self.renormalize else means

    def _protocol(self) -> str:
        counts = {language: len(self.templates[language]) for language in self.class_names}
        again = "re-normalised" if self.renormalize else "not re-normalised"
        return f"class vector = mean over templates, {again}; templates: {', '.join(map(str, counts.values()))}"


def _mean_per_class(correct: Tensor, labels: Tensor) -> float:
    """Return the mean over classes that occur of the accuracy within each."""
    totals = labels.bincount()
    right = labels.bincount(weights=correct.to(torch.float64))
    return float((right[totals > 0] / totals[totals > 0]).mean())
