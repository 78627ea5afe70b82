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


class Letters:
    """A model whose text embedding counts letters, at any length."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def encode_text(self, items, **_):
        self.asked.append(list(items))
        return torch.tensor([[float(item.count(letter)) for letter in "abcdefgh"] for item in items])


def unit(text: str) -> torch.Tensor:
    return torch.nn.functional.normalize(Letters().encode_text([text])[0], dim=0)


def test_every_template_asks_for_every_class():
    prompts = ClassPrompts(["cat", "dog"], ["a {}", "one {c}"])
    assert prompts.prompts("") == [["a cat", "one cat"], ["a dog", "one dog"]]


def test_name_with_braces_is_put_in_as_it_is():
    assert ClassPrompts(["{x}", "{}"], "a {}").prompts("") == [["a {x}"], ["a {}"]]


def test_class_without_a_sentence_is_asked_with_the_templates():
    prompts = ClassPrompts(["cat", "dog"], ["a {}"], {"cat": [], "dog": ["it barks"]})
    assert prompts.prompts("") == [["a cat"], ["it barks"]]


def test_classes_without_a_name_are_left_out_of_their_language():
    prompts = ClassPrompts({"en": ["cat", "dog", "owl"], "de": ["Katze", None, ""]})
    assert (prompts.named("en"), prompts.named("de")) == ([0, 1, 2], [0])
    assert prompts.prompts("de") == [["Katze"]]
    assert (prompts.languages, prompts.count) == (["en", "de"], 3)


def test_vector_is_the_mean_of_directions_and_not_of_vectors():
    # "aaaa" is long, but counts no more than "b".
    vectors = ClassPrompts(["cat"], descriptions={"cat": ["aaaa", "b"]}, renormalize=False).vectors(Letters(), "")
    assert vectors[0, :2].tolist() == [0.5, 0.5]


def test_classes_may_have_different_numbers_of_prompts():
    sentences = {"cat": ["abc"], "dog": ["d", "ee", "fgh"]}
    vectors = ClassPrompts(["cat", "dog"], descriptions=sentences, renormalize=False).vectors(Letters(), "")
    expected = [torch.stack([unit(text) for text in some]).mean(0) for some in sentences.values()]
    torch.testing.assert_close(vectors, torch.stack(expected))


def test_all_prompts_are_encoded_together():
    model = Letters()
    ClassPrompts(["cat", "dog"], ["a {}", "bb {}"]).vectors(model, "")
    assert model.asked == [["a cat", "bb cat", "a dog", "bb dog"]]


@pytest.mark.parametrize("templates", [["a photo"], "a photo", {"": ["a {}", "a photo"]}])
def test_template_without_a_place_is_refused(templates):
    with pytest.raises(ValueError, match=r"'a photo' needs \{\} or \{c\} where the class name goes"):
        ClassPrompts(["cat"], templates)


@pytest.mark.parametrize("template", ["a {name}", "{} and {}", "a {c} or {name}", "a {"])
def test_template_with_another_place_is_refused(template):
    with pytest.raises(ValueError, match="and no other"):
        ClassPrompts(["cat"], template)


def test_description_of_one_sentence_is_one_prompt():
    assert ClassPrompts(["cat"], descriptions={"cat": "It purrs."}).prompts("") == [["It purrs."]]


def test_language_without_any_name_is_called_by_its_code():
    with pytest.raises(ValueError, match="no class has a name in de"):
        ClassPrompts({"en": ["cat"], "de": [None]})


@pytest.mark.parametrize("templates", [{"en": ["a {}"]}, {"en": ["a {}"], "de": []}, []])
def test_language_without_templates_is_refused(templates):
    with pytest.raises(ValueError, match="but no templates"):
        ClassPrompts({"en": ["cat"], "de": ["Katze"]}, templates)


def test_protocol_counts_the_templates_of_each_language():
    prompts = ClassPrompts({"en": ["cat"], "de": ["Katze"]}, {"en": ["a {}", "{}"], "de": ["{}"]})
    assert prompts.protocol == "class vector = mean over prompts, re-normalised; templates: 2, 1"


def test_functions_are_templates_as_open_clip_has_them():
    words, functions = ["a photo of a {}.", "{c}, a toy"], [lambda c: f"a photo of a {c}.", lambda c: f"{c}, a toy"]
    assert ClassPrompts(["cat", "dog"], functions).prompts("") == ClassPrompts(["cat", "dog"], words).prompts("")
    assert ClassPrompts(["cat"], functions[0]).prompts("") == [["a photo of a cat."]]


def test_a_text_as_class_names_is_not_taken_for_its_letters():
    with pytest.raises(ValueError, match=r"'cat' is a text: pass \['cat', …\]"):
        ClassPrompts("cat")


@pytest.mark.parametrize(
    ("names", "templates", "descriptions", "message"),
    [
        (["cat", 5], "{}", None, r"class name 1 is 5 \(int\), not a text; write it in quotes"),
        ({"en": ["cat"], "de": [False]}, "{}", None, r"class name 0 in de is False \(bool\)"),
        ({"en": "cat"}, "{}", None, r"'cat' is a text: pass \['cat', …\]"),
        (5, "{}", None, "the class names are a list of texts, got 5"),
        (None, "{}", None, "the class names are a list of texts, got None"),
        ({"en": {"cat": 1}}, "{}", None, "the class names in en are a list of texts, got {'cat': 1}"),
        ({False: ["cat"]}, "{}", None, "a language is a text, got False; write it in quotes"),
        ({}, "{}", None, "no language; give at least one"),
        (["cat"], ["{}", None], None, r"template 1 is None \(NoneType\), not a text"),
        (["cat"], 5, None, "the templates are a list of texts, got 5"),
        ({"en": ["cat"]}, {"en": "a {}"}, None, r"templates are a list, and 'a \{\}' is a text"),
        ({"en": ["cat"]}, {"en": ["a {}"], 1: ["{}"]}, None, "a language is a text, got 1"),
        (["cat"], "{}", ["It purrs."], "descriptions are a dict from class name to sentences"),
        (["cat"], "{}", {"cat": 5}, "the descriptions of 'cat' are a list of texts, got 5"),
        (["cat"], "{}", {"cat": ["It purrs.", 5]}, r"description 1 of 'cat' is 5 \(int\)"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(names, templates, descriptions, message):
    with pytest.raises(ValueError, match=message):
        ClassPrompts(names, templates, descriptions)
