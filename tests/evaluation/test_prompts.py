"""What is asked for each class."""

from __future__ import annotations

import pytest
import torch

from freezealign import ZeroShotClassificationEvaluator
from freezealign.evaluation.prompts import ClassPrompts


class Axes:
    """A model that gives every text an axis of its own, in the order of asking."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode_text(self, texts, **_):
        self.asked += texts
        return torch.eye(8)[: len(texts)]

    def encode_image(self, items, **_):
        return torch.eye(8)[list(items)]


def test_descriptions_replace_templates():
    prompts = ClassPrompts(["cat", "dog"], ["a {}"], {"cat": ["It has whiskers.", "It purrs."]})
    assert prompts.prompts("") == [["It has whiskers.", "It purrs."], ["a dog"]]
    assert "descriptions of 1 of 2 classes" in prompts.protocol


def test_class_vector_is_the_mean_of_as_many_prompts_as_a_class_has():
    prompts = ClassPrompts(["cat", "dog"], ["{}"], {"cat": ["whiskers", "purrs", "tail"]}, renormalize=False)
    vectors = prompts.vectors(Axes(), "")
    third = 1 / 3
    torch.testing.assert_close(vectors, torch.tensor([[third] * 3 + [0] * 5, [0.0] * 3 + [1] + [0] * 4]))


def test_descriptions_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="none of the 2 classes has a description"):
        ClassPrompts(["cat", "dog"], ["{}"], {"Cat": ["It purrs."]})


def test_language_without_a_name_leaves_class_and_images_out():
    names = {"en": ["cat", "dog", "owl"], "la": ["feles", None, "noctua"]}
    evaluator = ZeroShotClassificationEvaluator([0, 1, 2, 2], [0, 1, 2, 2], names, ks=(1,), show_progress_bar=False)
    scores = evaluator(Axes())
    assert (scores["en_n_classes"], scores["la_n_classes"]) == (3, 2)
    assert (scores["en_n_images"], scores["la_n_images"]) == (4, 3)
    assert scores["en_top1"] == 1
    # "noctua" is the second text asked in Latin, so its axis is the dog's: of the three images only the cat is found.
    assert scores["la_top1"] == pytest.approx(1 / 3)
    assert scores["la_top1_chance"] == 0.5


def test_language_with_no_image_left_is_an_error():
    evaluator = ZeroShotClassificationEvaluator([0], [0], {"en": ["cat", "dog"], "la": [None, "canis"]})
    with pytest.raises(ValueError, match="no image has a class with a name in 'la'"):
        evaluator(Axes())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([None, None], "no class has a name"),
        ({"en": ["cat", "dog"], "de": ["Katze"]}, "1 class names in 'de' but 2 in 'en'"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        ClassPrompts(names)


def test_more_classes_than_images_are_fine():
    evaluator = ZeroShotClassificationEvaluator([0], [0], [f"class {i}" for i in range(8)], show_progress_bar=False)
    assert evaluator(Axes())["top1"] == 1


def test_confusion_is_drawn_of_the_worst_classes(tmp_path):
    from PIL import Image

    names = [f"class {index}" for index in range(40)]

    class Blind(Axes):
        def encode_text(self, texts, **_):
            return torch.nn.functional.normalize(torch.randn(len(texts), 8), dim=-1)

        encode_image = encode_text

    evaluator = ZeroShotClassificationEvaluator(range(80), [i % 40 for i in range(80)], names, show_progress_bar=False)
    evaluator(Blind(), tmp_path)
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.width > 500
