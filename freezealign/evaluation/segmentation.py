"""Segmentation without masks in training: which class each patch of a picture is nearest to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from freezealign.evaluation.base import Evaluator, Results, all_prefixed
from freezealign.evaluation.masks import read_masked
from freezealign.evaluation.overlap import IGNORED, BinaryIoU, MeanIoU, Overlap
from freezealign.evaluation.pictures import Overlay, draw_overlays
from freezealign.evaluation.prompts import ClassNames, ClassPrompts, Templates
from freezealign.evaluation.windows import SlidingWindows, cell_map, center_crop_share
from freezealign.inputs import InputError

Protocol = Literal["standard", "freeze-align"]
Background = Literal["none", "ignore", "threshold"]
Candidates = Literal["all", "present"]

PICTURES_AT_ONCE = 8
OVERLAYS = 6


class SegmentationEvaluator(Evaluator):
    """Mean intersection over union of patch embeddings against class vectors.

    ``protocol="standard"``: the picture is resized and cut into sliding windows, the patches' similarities are
    up-sampled to the original size, each pixel takes its best class, and IoU is computed per class over the whole data
    set. ``protocol="freeze-align"`` is the rule of the paper's code: the whole picture squashed into one window, and
    for each class that the mask holds the IoU of what lies above a threshold; no figure to compare with mIoU elsewhere.

    Beside each score stands that of random maps under the same rule, as ``_chance``.

    Args:
        images: The pictures, in any form :func:`freezealign.images.read_image` takes.
        masks: For each one of its picture's size, in any form :func:`freezealign.evaluation.masks.read_mask` takes.
        class_names: The C names; or such a list for each language.
        templates: Prompts with ``{}`` where the name goes; or such a list for each language.
        name: Put in front of every metric.
        protocol: ``standard`` or ``freeze-align``.
        background: ``ignore``: 0 in a mask is background and does not count, i is class number i from 1. ``threshold``:
            the same, but background counts as a class of its own, predicted where no class is likely. ``none``: i is
            class number i from 0. In ``freeze-align`` background is no class either way, but claiming it is wrong.
        candidates: ``present`` lets only the classes of a picture's own mask compete for its pixels (standard).
        windows: How pictures are cut; (336, 224, 112) by default, and one window of 224 for ``freeze-align``.
        threshold: Lowest probability of a class, softmax of 40 times the cosine, for ``background="threshold"``; of the
            stretched map for ``freeze-align``. 0.1 and 0.4 by default.
        ignore_label: A value in masks that does not count.
        batch_size: Windows a forward pass.
        show_progress_bar: Show progress if it takes longer than a second.

    Raises:
        ValueError: If an option is unknown, the numbers of pictures and masks differ, or a class has no name.
    """

    def __init__(
        self,
        images: Sequence[Any],
        masks: Sequence[Any],
        class_names: ClassNames | Mapping[str, ClassNames],
        templates: str | Templates | Mapping[str, Templates] = ("{}",),
        name: str = "",
        protocol: Protocol = "standard",
        background: Background = "ignore",
        candidates: Candidates = "all",
        windows: SlidingWindows | None = None,
        threshold: float | None = None,
        ignore_label: int = 255,
        batch_size: int = 32,
        show_progress_bar: bool = True,
    ) -> None:
        super().__init__(name, batch_size, show_progress_bar)
        for value, known in ((protocol, Protocol), (background, Background), (candidates, Candidates)):
            if value not in get_args(known):
                raise ValueError(f"unknown option {value!r}; choose one of {get_args(known)}.")
        if len(images) != len(masks) or not len(masks):
            raise ValueError(f"{len(images)} images but {len(masks)} masks.")
        self.images, self.masks = images, masks
        self.prompts = ClassPrompts(class_names, templates)
        self.languages, self.columns = self.prompts.languages, ["miou"]
        for language in self.languages:
            if len(self.prompts.named(language)) != self.prompts.count:
                raise ValueError(f"every class needs a name in '{language}'; a mask cannot leave one out.")
        self.rule, self.background, self.candidates, self.ignore_label = protocol, background, candidates, ignore_label
        first = background != "none"
        if first <= ignore_label < first + self.prompts.count:
            raise ValueError(f"ignore_label={ignore_label} is also one of the {self.prompts.count} classes; use -1.")
        whole = SlidingWindows(224, 224, 224, squash=True)
        self.windows = windows or (SlidingWindows() if protocol == "standard" else whole)
        self.threshold = threshold if threshold is not None else (0.1 if protocol == "standard" else 0.4)
        self.quiet = {**self.options, "show_progress_bar": False}  # one bar shows the pictures

    @property
    def protocol(self) -> str:
        """The protocol, in words."""
        if self.rule == "freeze-align":
            rule = f"freeze-align: binary IoU of present classes, stretched map ≥ {self.threshold:g}, mean over images"
        else:
            background = {
                "none": "no background",
                "ignore": "background ignored",
                "threshold": f"background below probability {self.threshold:g}",
            }[self.background]
            rule = f"standard: argmax over {self.candidates} classes, {background}, data set mIoU"
        return f"{rule}; {self.windows}; {self.prompts.protocol}; chance = random maps, same rule"

    def evaluate(self, model: Any, folder: Path | None = None) -> Results:
        """Return for each language ``miou``, that of random maps, the number of classes, and n.

        Draws the first pictures with their masks, true and predicted in the first language.

        Raises:
            TypeError: If the model has no ``encode_tokens``.
            ValueError: If a mask is no class index or of another size than its picture.
        """
        if not hasattr(model, "encode_tokens"):
            raise TypeError(
                "segmentation needs model.encode_tokens(images), which gives (patches, grid) for each: "
                f"{type(model).__name__} has none."
            )
        classes = {language: self.prompts.vectors(model, language, **self.quiet) for language in self.languages}
        found = {language: self._overlap() for language in self.languages}
        chance, overlays = self._overlap(), []
        for index, (image, truth, cells) in enumerate(self._pictures(model)):
            for language, vectors in classes.items():
                maps = self.windows.merge([cell_map(vectors, *cell) for cell in cells], image.size)
                predicted = found[language].add(maps, truth)
                if index < OVERLAYS and language == self.languages[0]:
                    overlays.append(Overlay(image, truth.numpy(), np.where(truth == IGNORED, IGNORED, predicted)))
            generator = torch.Generator().manual_seed(index)
            noise = [torch.rand(self.prompts.count, *grid, generator=generator) for _, grid in cells]
            chance.add(self.windows.merge(noise, image.size), truth)
        if folder is not None:
            names = [*map(str, self.prompts.class_names[self.languages[0]]), "background"]
            draw_overlays(folder / "overlays.png", overlays, names)
        results: Results = {"protocol": self.protocol}
        same = {"miou_chance": chance.scores()["miou"], "n_images": len(self.images), "n_classes": self.prompts.count}
        for language, overlap in found.items():
            results |= all_prefixed(language, {**overlap.scores(), **same})
        return results

    def _overlap(self) -> Overlap:
        if self.rule == "freeze-align":
            return BinaryIoU(self.prompts.count, self.threshold)
        background = self.threshold if self.background == "threshold" else None
        return MeanIoU(self.prompts.count, background, self.candidates)

    def _pictures(self, model: Any) -> Iterator[tuple[Image.Image, Tensor, list[Any]]]:
        """Yield each picture, its mask (H, W), and the patches and grid of each of its windows."""
        from tqdm.auto import tqdm

        keep = center_crop_share(model)
        hidden = not self.options["show_progress_bar"]
        with tqdm(total=len(self.images), desc="Segmenting", unit="image", disable=hidden, delay=1) as bar:
            for start in range(0, len(self.images), PICTURES_AT_ONCE):
                chosen = range(start, min(start + PICTURES_AT_ONCE, len(self.images)))
                read = [self._read(index) for index in chosen]
                cut = [self.windows.cut(image, keep) for image, _ in read]
                windows = [window for some in cut for window in some]
                cells = iter(model.encode_tokens(windows, modality="image", convert_to_tensor=True, **self.quiet))
                for (image, truth), some in zip(read, cut):
                    yield image, truth, [next(cells) for _ in some]
                    bar.update()

    def _read(self, index: int) -> tuple[Image.Image, Tensor]:
        """Return a picture and its mask: class indices from 0, C for background that counts, else ``IGNORED``."""
        item, classes = self.masks[index], self.prompts.count
        name = f"mask {index} ({item})" if isinstance(item, (str, Path)) else f"mask {index}"
        try:
            image, mask = read_masked(self.images[index], item, name)
        except InputError as error:
            raise InputError(f"item {index}: {error}") from error
        ignored = mask == self.ignore_label
        wrong = ~ignored & ((mask < 0) | (mask > classes - (self.background == "none")))
        if wrong.any():
            raise InputError(
                f"{name} holds {int(mask[wrong][0])}, which is none of the {classes} classes "
                f"(background='{self.background}') and not ignore_label={self.ignore_label}. Name every class."
            )
        if self.background != "none":
            counts = self.background == "threshold" or self.rule == "freeze-align"
            mask = np.where(mask == 0, classes if counts else IGNORED, mask - 1)
        return image, torch.from_numpy(np.where(ignored, IGNORED, mask))
