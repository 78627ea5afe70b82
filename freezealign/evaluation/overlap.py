"""How well maps of similarities find the classes of a mask: mean intersection over union, by two rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezealign.evaluation.metrics import bootstrap_interval, resampled_counts

LOGIT_SCALE = 40.0
IGNORED = -1
NOTHING = "there is no pixel to score: every mask is background or ignored."


class MeanIoU:
    """The standard rule: each pixel is of one class; intersections and unions are summed over all pictures.

    A class that is neither in the masks nor predicted has no IoU and does not count. The interval is a bootstrap over
    pictures.

    Args:
        classes: C.
        background: The lowest probability with which a pixel is of its best class rather than background; ``None``
            where there is no background to be found.
        candidates: ``present`` lets only classes of a picture's own mask compete for its pixels.
    """

    def __init__(self, classes: int, background: float | None = None, candidates: str = "all") -> None:
        self.classes, self.background, self.candidates = classes, background, candidates
        self._areas: list[np.ndarray] = []

    def add(self, maps: Tensor, truth: Tensor) -> Tensor:
        """Take one picture's similarities (C, H, W) and mask (H, W), and return what is predicted (H, W).

        The mask holds class indices, C for background, and ``IGNORED`` for pixels that do not count.
        """
        if self.candidates == "present":
            absent = torch.ones(self.classes, dtype=torch.bool)
            absent[_present(truth, self.classes)] = False
            maps = maps.masked_fill(absent[:, None, None].to(maps.device), float("-inf"))
        predicted = maps.argmax(0)
        if self.background is not None:
            best = (maps * LOGIT_SCALE).softmax(0).amax(0)
            predicted[~(best >= self.background)] = self.classes  # NaN, where no class competes, is background too
        predicted = predicted.cpu()
        counted = truth != IGNORED
        found, right = predicted[counted], truth[counted]
        count = self.classes + (self.background is not None)
        areas = [some.bincount(minlength=count) for some in (right[right == found], found, right)]
        self._areas.append(torch.stack(areas).numpy())  # (3, C): in both, in the prediction, in the mask
        return predicted

    def scores(self) -> dict[str, Any]:
        """Return ``miou``, its interval, ``pixel_accuracy`` and ``class_iou`` (null where there is none)."""
        areas = np.stack(self._areas).astype(np.float64)
        total = areas.sum(0)
        if not total[2].any():
            raise ValueError(NOTHING)
        ious = _ious(total[None])[0]
        score, resampled = float(np.nanmean(ious)), _resampled(areas)
        # A class in few pictures is often not drawn at all, which shifts the mean: only the spread is taken.
        low, high = np.clip(score + np.quantile(resampled, [0.025, 0.975]) - resampled.mean(), 0, 1)
        return {
            "miou": score,
            "miou_low": float(low),
            "miou_high": float(high),
            "pixel_accuracy": float(total[0].sum() / total[2].sum()),
            "class_iou": ious.tolist(),
        }


class BinaryIoU:
    """The rule of the paper's code, which is not mIoU: a random map already scores about .2 on everyday pictures.

    Of each class in a picture's mask, the map is stretched to [0, 1] and everything from ``threshold`` up is taken for
    the class; the score is the mean IoU over such classes, then over pictures. The model is told what is there.

    Args:
        classes: C.
        threshold: Of the stretched map.
    """

    def __init__(self, classes: int, threshold: float = 0.4) -> None:
        self.classes, self.threshold = classes, threshold
        self._pictures: list[float] = []

    def add(self, maps: Tensor, truth: Tensor) -> Tensor:
        """Take one picture as :class:`MeanIoU` does; predicted is the best of the classes that claim a pixel."""
        counted = truth != IGNORED
        present = _present(truth, self.classes)
        predicted = torch.full_like(truth, IGNORED)
        if not len(present):
            return predicted
        shown = maps[present].cpu()
        lows, highs = shown.amin((1, 2), keepdim=True), shown.amax((1, 2), keepdim=True)
        stretched = (shown - lows) / (highs - lows).clamp(min=torch.finfo(shown.dtype).tiny)  # a flat map is 0
        claimed = stretched >= self.threshold
        right = truth[None] == present[:, None, None]
        both, either = ((some & counted).sum((1, 2)) for some in (claimed & right, claimed | right))
        self._pictures.append(float((both / either).mean()))
        best = stretched.max(0)
        predicted[best.values >= self.threshold] = present[best.indices[best.values >= self.threshold]]
        return predicted

    def scores(self) -> dict[str, Any]:
        """Return ``miou`` and its interval."""
        if not self._pictures:
            raise ValueError(NOTHING)
        low, high = bootstrap_interval(np.array(self._pictures))
        return {"miou": float(np.mean(self._pictures)), "miou_low": low, "miou_high": high}


def _present(truth: Tensor, classes: int) -> Tensor:
    """Return the classes in a mask, background left out."""
    found = truth.unique()
    return found[(found >= 0) & (found < classes)]


def _ious(areas: np.ndarray) -> np.ndarray:
    """Return IoU (R, C) of areas (R, 3, C); NaN where the union is empty."""
    both, predicted, truth = areas[:, 0], areas[:, 1], areas[:, 2]
    union = predicted + truth - both
    return np.divide(both, union, out=np.full_like(union, np.nan), where=union > 0)


def _resampled(areas: np.ndarray) -> np.ndarray:
    """Return mIoU (R,) of pictures drawn with replacement, from areas (n, 3, C)."""
    flat, means = areas.reshape(len(areas), -1), []
    for drawn in resampled_counts(np.ones(len(areas)), max(flat.shape)):
        ious = _ious((drawn @ flat).reshape(len(drawn), *areas.shape[1:]))
        means.append(np.nanmean(ious[~np.isnan(ious).all(1)], axis=1))  # only ignored pixels may be drawn
    return np.concatenate(means)


Overlap = MeanIoU | BinaryIoU
"""Collects pictures and gives their score."""
