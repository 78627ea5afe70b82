"""Composed scenes: pictures, masks and captions that agree."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
from PIL import Image

from freezealign.inputs import InputError
from freezealign.samples import load_tuxpaint
from freezealign.samples.places import PLACES, describe_grid
from freezealign.samples.sample import Sample, crop_to_object
from freezealign.samples.scenes import LONG, compose_scenes


def cutout(number: int) -> Image.Image:
    """A filled rectangle of a colour and a shape of its own."""
    colour = (10 * number % 150, 7 * number % 150, 13 * number % 150, 255)
    return Image.new("RGBA", (20 + number % 5, 30), colour)


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


@pytest.mark.parametrize("error", [InputError, OSError, RuntimeError])
def test_broken_cutout_is_listed_and_left_out(error):
    def broken() -> Image.Image:
        raise error("cannot render it")

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
    assert describe_grid("en", ["A frog.", "Boo!", "red apple"], columns=2) == (
        "In row 1, column 1: A frog. In row 1, column 2: Boo! In row 2, column 1: red apple."
    )
    assert describe_grid("ja", ["りんご。", "猫"], columns=2).count("。") == 2


def test_leading_full_stops_and_trailing_commas_do_not_double_the_mark():
    assert describe_grid("en", [".tent", "a tent,", 'say "Boo!"'], columns=3) == (
        'In row 1, column 1: tent. In row 1, column 2: a tent. In row 1, column 3: say "Boo!"'
    )


@pytest.mark.parametrize("language", PLACES)
def test_every_language_says_row_column_and_name_once(language):
    text = describe_grid(language, ["A", "B", "C", "D", "E", "F", "Q"], columns=6)
    assert text.count("Q") == 1 and text.index("Q") > text.rindex("2") and text.endswith(("Q.", "Q。"))
    assert [digit for digit in text if digit.isdigit()] == [*"111213141516", *"21"]


def test_an_unknown_language_names_the_known_ones():
    with pytest.raises(ValueError, match=r"\['xx'\].*'pt_BR'.*'zh_CN'"):
        compose_scenes(SAMPLES, 4, languages=("en", "xx"))


def test_mask_follows_alpha_of_the_cutout_and_its_place():
    ring = Image.new("RGBA", (56, 56), (0, 0, 0, 255))
    ring.paste((0, 0, 0, 127), (14, 14, 42, 42))
    scenes = compose_scenes([Sample("ring", lambda: None, {"en": "ring"}, lambda: ring)], 1, objects=1, side=64)
    expected = np.zeros((64, 64), dtype=np.int64)
    expected[4:60, 4:60] = 1
    expected[18:46, 18:46] = 0
    np.testing.assert_array_equal(scenes.masks[0](), expected)


def test_cutout_is_cropped_to_what_is_visible():
    picture = Image.new("RGBA", (20, 10), (255, 0, 0, 127))
    picture.paste((0, 255, 0, 128), (3, 2, 8, 9))
    assert crop_to_object(picture, "it").getcolors() == [(35, (0, 255, 0, 128))]
    with pytest.raises(InputError, match=r"empty\.png has no visible pixel"):
        crop_to_object(Image.new("RGBA", (4, 4), (0, 0, 0, 127)), "empty.png")


def test_cutouts_of_stamps_keep_their_transparency(tmp_path):
    folder = tmp_path / "stamps" / "animals"
    folder.mkdir(parents=True)
    stamp = Image.new("RGBA", (20, 10))
    stamp.paste((255, 0, 0, 255), (5, 0, 9, 10))
    stamp.putpixel((6, 5), (255, 0, 0, 0))
    stamp.save(folder / "cat.png")
    (folder / "dog.png").write_bytes((folder / "cat.png").read_bytes()[:60])
    for name in ("cat", "dog"):
        (folder / f"{name}.txt").write_text(f"A {name}.", encoding="utf-8")
    cat, dog = load_tuxpaint(tmp_path).samples
    assert cat.cutout().size == (4, 10) and cat.cutout().getpixel((1, 5))[3] == 0
    with pytest.raises(InputError, match=r"cannot read the image dog\.png"):
        dog.cutout()


def test_drawings_are_rendered_on_transparency(tmp_path):
    pytest.importorskip("resvg_py")
    folder = tmp_path / "stamps" / "animals"
    folder.mkdir(parents=True)
    (folder / "ball.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><circle cx="5" cy="5" r="2" fill="red"/></svg>',
        encoding="utf-8",
    )
    (folder / "ball.txt").write_text("A ball.", encoding="utf-8")
    (ball,) = load_tuxpaint(tmp_path).samples
    cutout = ball.cutout()
    assert cutout.mode == "RGBA" and abs(cutout.width - 120) <= 2
    assert cutout.getpixel((0, 0))[3] < 128 and cutout.getpixel((60, 60)) == (255, 0, 0, 255)


@pytest.mark.slow
def test_long_captions_have_150_to_250_tokens():
    from freezealign import FrozenEncoder
    from freezealign.samples import load_openmoji

    tokenizer = FrozenEncoder("all-minilm-l6-v2").encoder.tokenizer
    captions = compose_scenes(load_openmoji().test, 20, objects=LONG).captions["en"]
    lengths = [len(tokenizer(caption)["input_ids"]) for caption in captions]
    assert min(lengths) >= 150 and max(lengths) <= 250


@pytest.mark.slow
@pytest.mark.skipif("FREEZEALIGN_STAMPS" not in os.environ, reason="FREEZEALIGN_STAMPS names the folder of the stamps")
def test_scenes_of_real_stamps_have_an_object_in_every_cell():
    scenes = compose_scenes(load_tuxpaint(os.environ["FREEZEALIGN_STAMPS"]).test, 3, objects=4)
    for mask in scenes.masks:
        assert len(np.unique(mask())) == 5
