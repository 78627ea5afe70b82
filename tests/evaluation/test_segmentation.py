"""Segmentation by patch embeddings."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from freezealign import SegmentationEvaluator
from freezealign.evaluation import SlidingWindows
from freezealign.evaluation.segmentation import read_mask

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
NAMES = list(COLOURS)
WHOLE = SlidingWindows(32, 32, 32)


class Painter:
    """A model that embeds a patch as its colour and a class as the colour of its name."""

    cells = 8

    def encode_text(self, texts, **_):
        vectors = torch.tensor([COLOURS[text] for text in texts], dtype=torch.float32)
        return torch.nn.functional.normalize(vectors, dim=-1)

    def encode_tokens(self, images, **_):
        found = []
        for image in images:
            small = np.asarray(image.resize((self.cells, self.cells), Image.Resampling.BOX), dtype=np.float32)
            patches = torch.from_numpy(small.reshape(-1, 3).copy())
            found.append((torch.nn.functional.normalize(patches + 1e-6, dim=-1), (self.cells, self.cells)))
        return found


class Guesser(Painter):
    """A model that knows nothing."""

    def encode_tokens(self, images, **_):
        generator = torch.Generator().manual_seed(len(images))
        return [(torch.randn(64, 3, generator=generator), (8, 8)) for _ in images]


def halves(first: int, second: int, side: int = 32) -> tuple[Image.Image, np.ndarray]:
    """A picture whose left half is of one class, counted from 1, and its right half of another."""
    mask = np.full((side, side), first)
    mask[:, side // 2 :] = second
    palette = np.array([(255, 255, 255), *COLOURS.values()], dtype=np.uint8)
    return Image.fromarray(palette[mask]), mask


PICTURES = [halves(1, 2), halves(2, 3), halves(3, 1)]


def evaluate(model, pictures=PICTURES, names=NAMES, **options):
    images, masks = zip(*pictures)
    options = {"windows": WHOLE, "show_progress_bar": False, **options}
    return SegmentationEvaluator(list(images), list(masks), names, **options)(model)


@pytest.mark.parametrize("protocol", ["standard", "freeze-align"])
def test_oracle_scores_one_and_beats_random_maps(protocol):
    scores = evaluate(Painter(), protocol=protocol)
    assert scores["miou"] > 0.93  # up-sampling bends the border between two cells
    assert scores["miou_chance"] < 0.6
    assert (scores["n_images"], scores["n_classes"]) == (3, 3)
    assert protocol in scores["protocol"]


def test_oracle_whose_cells_are_pixels_scores_exactly_one():
    model = Painter()
    model.cells = 32
    assert evaluate(model)["miou"] == 1


@pytest.mark.parametrize("protocol", ["standard", "freeze-align"])
def test_random_model_is_near_chance(protocol):
    pictures = [PICTURES[index % 3] for index in range(30)]
    scores = evaluate(Guesser(), pictures, protocol=protocol)
    assert scores["miou"] == pytest.approx(scores["miou_chance"], abs=0.06)


def test_windows_give_what_the_whole_picture_gives():
    # A uniform half each side of a window's border: overlapping windows agree with one large one.
    model = Painter()
    model.cells = 32
    tiled = evaluate(model, windows=SlidingWindows(64, 32, 16))
    assert tiled["miou"] == pytest.approx(evaluate(model)["miou"], abs=0.05)


def test_present_candidates_make_the_task_easier():
    pictures = [PICTURES[index % 3] for index in range(12)]
    assert evaluate(Guesser(), pictures, candidates="present")["miou"] > evaluate(Guesser(), pictures)["miou"] + 0.05


def test_ignored_pixels_do_not_count():
    image, mask = halves(1, 2)
    spoiled = mask.copy()
    spoiled[:, :16] = 255
    model = Painter()
    model.cells = 32
    assert evaluate(model, [(image, spoiled)])["miou"] == 1


def test_background_may_be_a_class_of_its_own():
    image, mask = halves(1, 0)  # white: as near to each class
    model = Painter()
    model.cells = 32
    scores = evaluate(model, [(image, mask)], background="threshold", threshold=0.5)
    assert scores["miou"] == 1
    assert len(scores["class_iou"]) == 4


def test_masks_may_count_from_zero():
    pictures = [(image, mask - 1) for image, mask in PICTURES]
    model = Painter()
    model.cells = 32
    assert evaluate(model, pictures, background="none")["miou"] == 1


def test_picture_of_one_pixel_is_segmented():
    scores = evaluate(Painter(), [(Image.new("RGB", (1, 1), (255, 0, 0)), np.ones((1, 1), dtype=int))])
    assert scores["miou"] == 1


def test_languages_share_the_pictures():
    class Polyglot(Painter):
        def encode_text(self, texts, **_):
            german = {"rot": "red", "grün": "green", "blau": "red"}
            return super().encode_text([german.get(text, text) for text in texts])

    scores = evaluate(Polyglot(), names={"en": NAMES, "de": ["rot", "grün", "blau"]})
    assert scores["en_miou"] > 0.9 > scores["de_miou"]
    assert scores["en_miou_chance"] == scores["de_miou_chance"]


def test_masks_come_as_palettes_and_functions(tmp_path):
    image, mask = PICTURES[0]
    picture = Image.fromarray(mask.astype(np.uint8), mode=None)
    palette = picture.convert("P")
    palette.putdata(mask.flatten().tolist())
    palette.putpalette([value for index in range(256) for value in (index, 255 - index, 0)])
    palette.save(tmp_path / "mask.png")
    for item in (tmp_path / "mask.png", str(tmp_path / "mask.png"), picture, lambda: mask, mask.tolist()):
        np.testing.assert_array_equal(read_mask(item), mask)
    assert evaluate(Painter(), [(image, tmp_path / "mask.png")])["miou"] > 0.9


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((32, 32), 7), "mask 0 holds 7"),
        (np.full((32, 32), -3), "mask 0 holds -3"),
        (np.ones((32, 31), dtype=int), r"\(32, 31\), its image \(32, 32\)"),
        (np.ones((32, 32, 3), dtype=np.uint8), "a mask of colours"),
        (np.ones((32, 32)), "float64"),
        (np.full((32, 32), 255), "no pixel to score"),
    ],
)
def test_mask_that_cannot_be_scored_is_an_error(mask, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Painter(), [(PICTURES[0][0], mask)])


def test_ignore_label_that_is_a_class_is_refused():
    with pytest.raises(ValueError, match="ignore_label=2 is also"):
        evaluate(Painter(), ignore_label=2)


def test_unknown_option_names_the_known_ones():
    with pytest.raises(ValueError, match="freeze-align"):
        evaluate(Painter(), protocol="miou")


def test_model_without_patches_is_refused():
    class Clip:
        def encode_text(self, texts, **_):
            return torch.ones(len(texts), 3)

    with pytest.raises(TypeError, match="encode_tokens"):
        evaluate(Clip())


def test_class_without_a_name_is_refused():
    with pytest.raises(ValueError, match="every class needs a name in 'de'"):
        evaluate(Painter(), names={"en": NAMES, "de": ["rot", None, "blau"]})


def test_broken_picture_is_named():
    with pytest.raises(ValueError, match="item 1"):
        evaluate(Painter(), [PICTURES[0], ("missing.png", PICTURES[1][1])])


def test_overlays_and_results_are_written(tmp_path):
    images, masks = zip(*PICTURES)
    evaluator = SegmentationEvaluator(images, masks, NAMES, name="colours", windows=WHOLE, show_progress_bar=False)
    results = evaluator(Painter(), tmp_path)
    assert json.loads((tmp_path / "colours.json").read_text())["colours_miou"] == results[evaluator.primary_metric]
    with Image.open(tmp_path / "overlays.png") as picture:
        assert picture.width > 500


@pytest.mark.parametrize("protocol", ["standard", "freeze-align"])
def test_works_on_a_real_model(model, images, protocol):
    masks = [np.arange(image.width * image.height).reshape(image.height, image.width) % 4 for image in images]
    evaluator = SegmentationEvaluator(
        images, masks, ["apple", "car", "dog"], protocol=protocol, show_progress_bar=False
    )
    scores = evaluator(model)
    assert 0 < scores["miou"] < 1
    assert scores["miou_low"] <= scores["miou"] <= scores["miou_high"]
