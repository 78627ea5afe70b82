"""Composed scenes: pictures, masks and captions that agree."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
from PIL import Image

from freezealign.data.places import describe
from freezealign.data.samples import Sample
from freezealign.data.scenes import LONG, compose_scenes
from freezealign.inputs import InputError


def cutout(number: int) -> Image.Image:
    """A filled rectangle of a colour and a shape of its own."""
    colour = (10 * number % 150, 7 * number % 150, 13 * number % 150, 255)
    return Image.new("RGBA", (20 + number % 5, 30), colour)


def broken() -> Image.Image:
    raise InputError("cannot render it")


def sample(number: int, read=None) -> Sample:
    captions = {"en": f"thing {number}", "de": f"Ding {number}"}
    return Sample(f"key{number:02}", lambda: None, captions, read or partial(cutout, number))


SAMPLES = [sample(number) for number in range(20)]


def test_same_seed_gives_same_scenes_in_any_order_of_samples():
    first, second = (compose_scenes(some, 4, side=64, seed=1) for some in (SAMPLES, SAMPLES[::-1]))
    assert first.captions == second.captions
    for one, other in zip(first.images, second.images):
        np.testing.assert_array_equal(one(), other())
    assert compose_scenes(SAMPLES, 4, side=64, seed=2).keys != first.keys


def test_mask_names_what_the_picture_shows():
    scenes = compose_scenes(SAMPLES, 5, objects=5, side=96)
    for image, mask, keys in zip(scenes.images, scenes.masks, scenes.keys):
        pixels, classes = np.asarray(image()), mask()
        assert classes.shape == pixels.shape[:2] == (96, 96)
        assert len(np.unique(classes)) == 6
        for number in set(np.unique(classes)) - {0}:
            key = sorted(s.key for s in SAMPLES)[number - 1]
            assert key in keys
            expected = np.asarray(cutout(int(key[3:])))[0, 0, :3]
            assert np.abs(pixels[classes == number].astype(int) - expected).max() <= 1
            assert scenes.class_names["en"][number - 1] == f"thing {int(key[3:])}"
        background = pixels[classes == 0]
        assert (background == background[0]).all()
        assert background.min() >= 200


def test_captions_follow_reading_order():
    scenes = compose_scenes(SAMPLES, 2, objects=4, languages=("en", "de"), side=64)
    for caption, german, keys, mask in zip(
        scenes.captions["en"], scenes.captions["de"], scenes.keys, (m() for m in scenes.masks)
    ):
        numbers = [int(key[3:]) for key in keys]
        assert caption.split(".")[0] == f"In row 1, column 1: thing {numbers[0]}"
        assert [caption.index(f"thing {number}.") for number in numbers] == sorted(
            caption.index(f"thing {number}.") for number in numbers
        )
        assert f"In Zeile 2, Spalte 2: Ding {numbers[3]}." in german
        quarters = [mask[:32, :32], mask[:32, 32:], mask[32:, :32], mask[32:, 32:]]
        assert [int(quarter.max()) - 1 for quarter in quarters] == numbers


def test_variants_differ_in_the_last_objects_only():
    scenes = compose_scenes(SAMPLES, 6, objects=5, variants=3, changed=2, side=96)
    for start in (0, 3):
        group = scenes.keys[start : start + 3]
        assert len({tuple(keys[:3]) for keys in group}) == 1
        assert len({key for keys in group for key in keys[3:]}) == 6
        corners = {scenes.images[start + i]().getpixel((0, 0)) for i in range(3)}
        assert len(corners) == 1


def test_no_two_objects_share_a_caption():
    twins = [*SAMPLES, Sample("twin", lambda: None, {"en": "thing 3"}, partial(cutout, 3))]
    for keys in compose_scenes(twins, 30, objects=9, side=96).keys:
        assert not {"twin", "key03"} <= set(keys)


def test_broken_cutout_is_listed_and_left_out():
    scenes = compose_scenes([*SAMPLES, sample(99, broken)], 8, side=64)
    assert [(entry.index, entry.reason) for entry in scenes.skipped] == [(20, "cannot render it")]
    assert len(scenes.class_names["en"]) == 20


def test_sample_without_a_language_is_not_used():
    english = Sample("only", lambda: None, {"en": "only English"}, partial(cutout, 1))
    scenes = compose_scenes([*SAMPLES, english], 8, languages=("en", "de"), side=64)
    assert "only English" not in scenes.class_names["en"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": 30}, "30 samples"),
        ({"languages": ("en", "xx")}, "xx"),
        ({"count": 5, "variants": 2}, "multiple of 2"),
        ({"objects": 3, "variants": 2, "changed": 4}, "4 of 3"),
        ({"side": 8}, "side must be at least"),
        ({"count": 0}, "count is 0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compose_scenes(SAMPLES, **{"count": 4, "side": 256, **options})


def test_sentences_end_in_one_mark():
    assert describe("en", ["A frog.", "Boo!", "red apple"], columns=2) == (
        "In row 1, column 1: A frog. In row 1, column 2: Boo! In row 2, column 1: red apple."
    )
    assert describe("ja", ["りんご。", "猫"], columns=2).count("。") == 2


@pytest.mark.slow
def test_long_captions_have_150_tokens_and_more():
    from freezealign import FrozenEncoder
    from freezealign.data.openmoji import load_openmoji

    tokenizer = FrozenEncoder("all-minilm-l6-v2").encoder.tokenizer
    captions = compose_scenes(load_openmoji().test, 20, objects=LONG).captions["en"]
    lengths = [len(tokenizer(caption)["input_ids"]) for caption in captions]
    assert min(lengths) >= 140
    assert np.mean(lengths) >= 150


@pytest.mark.slow
@pytest.mark.skipif("FREEZEALIGN_STAMPS" not in os.environ, reason="FREEZEALIGN_STAMPS names the folder of the stamps")
def test_scenes_of_real_stamps_have_an_object_in_every_cell():
    from freezealign.data.tuxpaint import load_tuxpaint

    scenes = compose_scenes(load_tuxpaint(os.environ["FREEZEALIGN_STAMPS"]).test, 3, objects=4)
    for mask in scenes.masks:
        assert len(np.unique(mask())) == 5
