"""Segmentation by patch embeddings."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from freezealign import SegmentationEvaluator
from freezealign.evaluation import SlidingWindows
from freezealign.evaluation.masks import read_mask
from freezealign.evaluation.overlap import IGNORED
from freezealign.evaluation.pictures import Overlay, by_importance, draw_overlays
from freezealign.inputs import InputError

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
        (np.ones((32, 32, 3), dtype=np.uint8), "A mask of colours"),
        (np.ones((32, 32)), "float64"),
        ([[1, 2], [3]], "cannot read mask 0"),
        (lambda: None, "mask 0 holds object"),
        (lambda: 1 // 0, "cannot read mask 0"),
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


# From pictures and masks on, step by step


class Exact(Painter):
    """Such a model that sees every pixel of a window of 32."""

    cells = 32


class Sight(Painter):
    """A model whose random patches are those of the picture, so that its maps can be computed beside the evaluator."""

    def encode_text(self, texts, **_):
        generator = torch.Generator().manual_seed(7)
        return torch.nn.functional.normalize(torch.randn(4, 16, generator=generator), dim=-1)[: len(texts)]

    def encode_tokens(self, images, **_):
        return [(self.patches(image), (3, 3)) for image in images]

    def patches(self, image: Image.Image) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(np.asarray(image, dtype=np.int64).sum()))
        return torch.randn(9, 16, generator=generator) / 8

    def maps(self, image: Image.Image) -> torch.Tensor:
        values = (self.encode_text("abcd") @ self.patches(image).T).view(1, 4, 3, 3)
        return torch.nn.functional.interpolate(values, (32, 32), mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("background", ["none", "ignore", "threshold"])
@pytest.mark.parametrize("ignore_label", [255, 77, -1])
def test_miou_equals_torchmetrics_from_masks_on(background, ignore_label):
    oracle = pytest.importorskip("torchmetrics.classification")
    metric, rng, model = oracle.MulticlassJaccardIndex(5, ignore_index=-9), np.random.default_rng(0), Sight()
    labels = [0, 1, 2, 3, ignore_label]
    images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(5)]
    pictures = [(image, rng.choice(labels, (32, 32))) for image in images]
    for image, mask in pictures:
        maps, truth = model.maps(image), torch.from_numpy(mask).clone()
        predicted = maps.argmax(0) + (background != "none")
        if background == "threshold":
            predicted[(40 * maps).softmax(0).amax(0) < 0.4] = 0
        truth[torch.from_numpy(mask) == ignore_label] = -9
        if background == "ignore":
            truth[truth == 0] = -9
        metric.update(predicted[None], truth[None])
    scores = evaluate(model, pictures, list("abcd"), background=background, ignore_label=ignore_label, threshold=0.4)
    assert scores["miou"] == pytest.approx(float(metric.compute()), abs=1e-6)


def test_pictures_encoded_in_groups_stay_with_their_masks(monkeypatch):
    monkeypatch.setattr("freezealign.evaluation.segmentation.PICTURES_AT_ONCE", 2)
    large = [halves(first, second, side=64) for first, second in ((1, 2), (2, 3), (3, 1))]
    assert evaluate(Exact(), large, windows=SlidingWindows(64, 32, 16))["miou"] == 1


def test_long_picture_is_segmented_in_windows():
    image, mask = halves(1, 2)
    wide = Image.fromarray(np.concatenate([np.asarray(image)] * 6, axis=1)), np.concatenate([mask] * 6, axis=1)
    high = Image.fromarray(np.concatenate([np.asarray(image)] * 6)), np.concatenate([mask] * 6)
    assert evaluate(Exact(), [wide, high])["miou"] == 1


def test_more_classes_than_pictures_can_be_evaluated():
    class Sombre(Exact):
        """To this model an unknown class is like no colour at all."""

        def encode_text(self, texts, **_):
            known = super().encode_text([text for text in texts if text in COLOURS])
            return torch.cat([known, -torch.ones(len(texts) - len(known), 3)])

    assert evaluate(Sombre(), PICTURES[:1], [*NAMES, *"abcdef"])["miou"] == 1


def test_one_mask_of_several_may_be_ignored():
    nothing = PICTURES[0][0], np.full((32, 32), 255)
    for protocol in ("standard", "freeze-align"):
        scores = evaluate(Exact(), [PICTURES[1], nothing], protocol=protocol)
        alone = evaluate(Exact(), [PICTURES[1]], protocol=protocol)
        assert (scores["miou"], scores["n_images"]) == (alone["miou"], 2)


# The rule of the paper's code


def test_claiming_background_is_wrong_by_the_papers_rule():
    # The model sees red in the left half of a picture of which the mask gives red only a quarter.
    image, _ = halves(1, 0)
    mask = np.zeros((32, 32), dtype=int)
    mask[:, :8] = 1
    options = {"protocol": "freeze-align", "threshold": 0.99}
    assert evaluate(Exact(), [(image, mask)], **options)["miou"] == 0.5
    assert evaluate(Exact(), [(image, np.where(mask == 0, 255, mask))], **options)["miou"] == 1


def test_papers_rule_tells_the_model_what_is_there():
    class Blue(Exact):
        """To this model everything is blue before it is anything else."""

        def encode_tokens(self, images, **_):
            return [(patches + torch.tensor([0, 0, 2]), grid) for patches, grid in super().encode_tokens(images)]

    pictures = [halves(1, 2)]
    assert evaluate(Blue(), pictures)["miou"] == 0
    assert evaluate(Blue(), pictures, candidates="present")["miou"] == 1
    assert evaluate(Blue(), pictures, protocol="freeze-align")["miou"] == 1


def test_papers_rule_squashes_a_picture_into_one_window():
    seen = []

    class Watching(Painter):
        def encode_tokens(self, images, **_):
            seen.extend(image.size for image in images)
            return super().encode_tokens(images)

    picture = Image.new("RGB", (90, 30), "red"), np.ones((30, 90), dtype=int)
    evaluate(Watching(), [picture], protocol="freeze-align", windows=None)
    assert seen == [(224, 224)]


# Masks and options


@pytest.mark.parametrize(
    ("mode", "kind", "factor"), [("1", bool, 0), ("L", np.uint8, 1), ("I", np.int32, 300), ("I;16", np.uint16, 300)]
)
def test_images_of_one_integer_band_are_masks(mode, kind, factor, tmp_path):
    mask = PICTURES[0][1] * factor if factor else PICTURES[0][1] % 2
    image = Image.fromarray(mask.astype(kind))
    assert image.mode == mode
    image.save(tmp_path / "mask.tif")
    np.testing.assert_array_equal(read_mask(image), mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), mask)


@pytest.mark.parametrize(("value", "background"), [(4, "ignore"), (4, "threshold"), (3, "none"), (-1, "ignore")])
def test_mask_value_beyond_the_classes_names_its_mask(value, background):
    pictures = [(image, np.minimum(mask, 2)) for image, mask in PICTURES]
    pictures[1][1][0, 0] = value
    with pytest.raises(ValueError, match=f"mask 1 holds {value}, which is none of the 3 classes"):
        evaluate(Painter(), pictures, background=background)


MASK = PICTURES[0][1].astype(np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Image.fromarray(np.full_like(MASK, 59)), r"mask 0 \(.*mask\.png\) holds 59, which is none of the 3 classes"),
        (Image.fromarray(MASK[:4]), r"mask 0 \(.*mask\.png\) is \(4, 32\), its image \(32, 32\)"),
        (Image.fromarray(MASK).convert("RGB"), r"mask 0 \(.*mask\.png\) holds uint8 of shape .* of mode 'RGB'"),
        (None, r"cannot read mask 0 \(.*mask\.png\): cannot identify image file"),
    ],
)
def test_file_that_is_no_mask_of_its_picture_is_named(tmp_path, content, message):
    path = tmp_path / "mask.png"
    path.write_bytes(b"no picture") if content is None else content.save(path)
    with pytest.raises(InputError, match=message):
        evaluate(Painter(), [(PICTURES[0][0], path)])


def test_mask_of_its_picture_on_the_side_is_refused():
    image, mask = PICTURES[0][0].crop((0, 0, 32, 16)), PICTURES[0][1][:, :16]
    with pytest.raises(InputError, match=r"mask 0 is \(32, 16\), its image \(16, 32\)"):
        evaluate(Painter(), [(image, mask)])


@pytest.mark.parametrize("names", [["x"] * 255, {"en": ["x"] * 300}])
def test_more_classes_than_masks_can_tell_apart_are_refused(names):
    assert len(SegmentationEvaluator([0], [0], ["x"] * 254).prompts.named("")) == 254
    with pytest.raises(ValueError, match="ignore_label=255 is also one of the"):
        SegmentationEvaluator([0], [0], names)


@pytest.mark.parametrize(("background", "label"), [("none", 0), ("none", 2), ("ignore", 3), ("threshold", 1)])
def test_label_to_ignore_may_not_be_a_class(background, label):
    with pytest.raises(ValueError, match=f"ignore_label={label} is also"):
        evaluate(Painter(), background=background, ignore_label=label)


def test_label_to_ignore_may_follow_the_last_class():
    pictures = [(image, np.where(mask == 3, 3, mask - 1)) for image, mask in PICTURES]
    assert evaluate(Exact(), pictures, background="none", ignore_label=3)["miou"] == 1


def test_other_number_of_masks_is_refused():
    with pytest.raises(ValueError, match="1 images but 2 masks"):
        SegmentationEvaluator([PICTURES[0][0]], [PICTURES[0][1]] * 2, NAMES)


@pytest.mark.parametrize("option", ["protocol", "background", "candidates"])
def test_unknown_options_are_refused(option):
    with pytest.raises(ValueError, match="unknown option 'nonsense'; choose one of"):
        evaluate(Painter(), **{option: "nonsense"})


# What is written


def test_protocol_names_rule_background_windows_and_prompts():
    standard = evaluate(Painter(), candidates="present")["protocol"]
    for part in ("argmax over present", "background ignored", "shorter side 32", "templates: 1", "chance = random"):
        assert part in standard
    assert "probability 0.1" in evaluate(Painter(), background="threshold")["protocol"]
    assert "≥ 0.4" in evaluate(Painter(), protocol="freeze-align")["protocol"]


@pytest.mark.parametrize("protocol", ["standard", "freeze-align"])
def test_overlays_show_background_and_pixels_that_do_not_count(tmp_path, protocol):
    image, mask = halves(1, 0)
    mask[:4] = 255
    options = {"protocol": protocol, "background": "threshold", "windows": WHOLE, "show_progress_bar": False}
    SegmentationEvaluator([image] * 2, [mask] * 2, NAMES, **options)(Exact(), tmp_path)
    with Image.open(tmp_path / "overlays.png") as picture:
        picture.load()
        assert picture.size == (1200, 600)


def test_overlays_leave_out_what_does_not_count(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("freezealign.evaluation.segmentation.draw_overlays", lambda _, some, names: drawn.extend(some))
    image, mask = halves(1, 2)
    mask[:4] = 255
    SegmentationEvaluator([image], [mask], NAMES, windows=WHOLE, show_progress_bar=False)(Exact(), tmp_path)
    expected = np.where(mask == 255, IGNORED, mask - 1)
    np.testing.assert_array_equal(drawn[0].truth, expected)
    np.testing.assert_array_equal(drawn[0].predicted, expected)


def test_classes_of_an_overlay_are_those_of_the_truth_and_then_the_others_predicted():
    truth = np.array([[7, 7, 4], [7, 4, -1]])
    assert by_importance(Overlay(PICTURES[0][0], truth, np.array([[2, 9, 9], [7, 4, -1]]))) == [7, 4, 9, 2]


@pytest.mark.parametrize("classes", [1, 12, 40])
def test_any_number_of_classes_is_drawn_with_a_legend(tmp_path, classes):
    mask = np.arange(32 * 32).reshape(32, 32) % classes
    names = [*(f"class {number}" for number in range(classes - 1)), "x$y", "background"]
    draw_overlays(tmp_path / "overlays.png", [Overlay(PICTURES[0][0], mask, mask + 1)], names)
    with Image.open(tmp_path / "overlays.png") as picture:
        picture.load()


def test_class_that_never_occurs_is_null_in_json(tmp_path):
    image, mask = PICTURES[0]
    SegmentationEvaluator([image], [mask], NAMES, windows=WHOLE, show_progress_bar=False)(Exact(), tmp_path)
    assert json.loads((tmp_path / "SegmentationEvaluator.json").read_text())["class_iou"] == [1, 1, None]


def test_real_models_scores_are_those_of_its_patches(model, images):
    names, rng, right, counted = ["apple", "car", "dog"], np.random.default_rng(1), 0, 0
    pictures = [(image, rng.integers(0, 4, image.size[::-1])) for image in images]
    scores = evaluate(model, pictures, names, windows=SlidingWindows(28, 28, 28, squash=True))
    for image, mask in pictures:
        patches, grid = model.encode_tokens(image.resize((28, 28), Image.Resampling.BICUBIC))
        maps = torch.from_numpy(model.encode(names) @ patches.T).view(1, 3, *grid)
        for size in ((28, 28), image.size[::-1]):
            maps = torch.nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)
        right += int((maps[0].argmax(0).numpy() + 1 == mask).sum())
        counted += int((mask > 0).sum())
    assert scores["pixel_accuracy"] == pytest.approx(right / counted, abs=1e-3)
