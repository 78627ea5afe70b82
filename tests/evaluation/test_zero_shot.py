"""Classification by the nearest class name."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from freezealign import ZeroShotClassificationEvaluator
from freezealign.evaluation.pictures import MOST_CLASSES, draw_confusion, most_mistaken
from freezealign.evaluation.prompts import ClassPrompts


def at(degrees: float, length: float = 1.0) -> list[float]:
    return [length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))]


class Table:
    """A model that knows the direction of every image and every prompt, in degrees."""

    def __init__(self, images: list[float], prompts: dict[str, float]) -> None:
        self.images, self.prompts = images, prompts
        self.asked: list[str] = []

    def encode_image(self, items, **_):
        return torch.tensor([at(self.images[item]) for item in items])

    def encode_text(self, items, **_):
        self.asked += items
        return torch.tensor([at(self.prompts[item]) for item in items])


class Random:
    """A model that knows nothing."""

    def encode_image(self, items, **_):
        generator = torch.Generator().manual_seed(len(items))
        return torch.nn.functional.normalize(torch.randn(len(items), 32, generator=generator), dim=-1)

    encode_text = encode_image


class Constant:
    """A model to which everything is alike."""

    def encode_image(self, items, **_):
        return torch.nn.functional.normalize(torch.linspace(0.1, 1, 24), dim=0).repeat(len(items), 1)

    encode_text = encode_image


def evaluate(model, *args, **options):
    return ZeroShotClassificationEvaluator(*args, **options, show_progress_bar=False)(model)


# By hand

PETS = {"cat": 0, "dog": 90, "owl": 180}


def test_accuracy_by_hand():
    # 10 is nearest to cat, 50 to dog then cat, 100 to dog then owl, 170 to owl.
    scores = evaluate(Table([10, 50, 100, 170], PETS), range(4), [0, 0, 1, 2], ["cat", "dog", "owl"], ks=(1, 2))
    assert (scores["top1"], scores["top2"]) == (0.75, 1)
    assert (scores["n_images"], scores["n_classes"]) == (4, 3)


def test_mean_per_class_weighs_classes_alike():
    # Three cats, two found; one dog, found.
    scores = evaluate(Table([0, 10, 80, 90], PETS), range(4), [0, 0, 0, 1], ["cat", "dog", "owl"])
    assert scores["top1"] == 0.75
    assert scores["mean_per_class"] == pytest.approx((2 / 3 + 1) / 2)


def test_ties_count_against_the_model():
    # Both classes lie at 30 degrees: neither image has found its own.
    scores = evaluate(Table([0, 0], {"cat": 30, "dog": 30}), range(2), [0, 1], ["cat", "dog"], ks=(1, 2))
    assert (scores["top1"], scores["top2"]) == (0, 1)


def test_two_classes_of_one_name_are_a_tie():
    assert evaluate(Table([0, 0], PETS), range(2), [0, 1], ["cat", "cat"], ks=(1,))["top1"] == 0


def test_constant_model_is_never_right():
    scores = evaluate(Constant(), range(40), [i % 10 for i in range(40)], [f"class {i}" for i in range(10)])
    assert (scores["top1"], scores["top5"], scores["mean_per_class"]) == (0, 0, 0)


def test_random_model_is_near_chance():
    labels = np.arange(2000) % 10
    scores = evaluate(Random(), range(2000), labels, [f"class {i}" for i in range(10)])
    assert (scores["top1_chance"], scores["top5_chance"]) == (0.1, 0.5)
    assert scores["top1"] == pytest.approx(0.1, abs=0.03)
    assert scores["top5"] == pytest.approx(0.5, abs=0.05)


def test_accuracy_equals_clip_benchmark():
    oracle = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    generator = torch.Generator().manual_seed(0)
    normalize = torch.nn.functional.normalize
    images = normalize(torch.randn(60, 8, generator=generator))
    classes = normalize(torch.randn(7, 8, generator=generator))
    labels = torch.arange(60) % 7

    class Model:
        def encode_image(self, items, **_):
            return images[torch.as_tensor(items)]

        def encode_text(self, items, **_):
            return classes[torch.tensor([int(item) for item in items])]

    logits = images @ classes.T
    theirs = [float((logits.topk(k).indices == labels[:, None]).any(1).float().mean()) for k in (1, 5)]
    ours = evaluate(Model(), range(60), labels, [str(i) for i in range(7)])
    assert (ours["top1"], ours["top5"]) == (pytest.approx(theirs[0]), pytest.approx(theirs[1]))
    names, tokenizer = [str(i) for i in range(7)], lambda words: torch.tensor([int(word) for word in words])
    classifier = oracle.zero_shot_classifier(Model(), tokenizer, names, ["{c}"], "cpu", amp=False)
    torch.testing.assert_close(logits, images @ classifier)


def test_top_k_beyond_the_classes_is_everything():
    scores = evaluate(Table([10, 50], PETS), range(2), [0, 2], ["cat", "dog", "owl"], ks=(5,))
    assert scores["top5"] == scores["top5_chance"] == 1


def test_accuracy_lies_in_its_interval():
    scores = evaluate(Random(), range(60), np.arange(60) % 3, ["a", "b", "c"])
    assert scores["top1_low"] < scores["top1"] < scores["top1_high"]


def test_single_image_can_be_evaluated():
    assert evaluate(Table([10], PETS), range(1), [0], ["cat", "dog", "owl"])["top1"] == 1


# Templates

PROMPTS = {"a cat": 0, "one cat": 60, "a dog": 90, "one dog": 95}


def test_class_name_is_put_into_every_template():
    model = Table([0, 90], PROMPTS)
    evaluate(model, range(2), [0, 1], ["cat", "dog"], ["a {}", "one {c}"])
    assert sorted(model.asked) == sorted(PROMPTS)


def test_class_vector_is_the_mean_of_its_prompts_directions():
    # cat lies at 30, dog at 92.5: 58 is nearer to cat, though "one cat" alone would be the nearest prompt at 62.
    scores = evaluate(Table([58, 62], PROMPTS), range(2), [0, 1], ["cat", "dog"], ["a {}", "one {}"], ks=(1,))
    assert scores["top1"] == 1


def test_class_vector_is_a_unit_vector_again():
    vectors = ClassPrompts(["cat", "dog"], ["a {}", "one {}"]).vectors(Table([], PROMPTS), "")
    torch.testing.assert_close(vectors, torch.tensor([at(30), at(92.5)]))


def test_class_vector_can_be_left_as_the_mean():
    vectors = ClassPrompts(["cat", "dog"], ["a {}", "one {}"], renormalize=False).vectors(Table([], PROMPTS), "")
    expected = torch.tensor([at(30, math.cos(math.radians(30))), at(92.5, math.cos(math.radians(2.5)))])
    torch.testing.assert_close(vectors, expected)


def test_renormalising_changes_a_decision():
    # 60 is 30 off cat and 32.5 off dog, but cat's mean vector is the shorter one.
    arguments = (range(2), [0, 0], ["cat", "dog"], ["a {}", "one {}"])
    model = Table([60, 60], PROMPTS)
    assert evaluate(model, *arguments)["top1"] == 1
    assert evaluate(model, *arguments, renormalize=False)["top1"] == 0


def test_template_without_a_place_for_the_name_is_refused():
    with pytest.raises(ValueError, match="a photo"):
        evaluate(Constant(), range(2), [0, 1], ["cat", "dog"], ["a photo"])


def test_one_template_alone_may_be_a_string():
    model = Table([0, 90], PROMPTS)
    assert evaluate(model, range(2), [0, 1], ["cat", "dog"], "a {}", ks=(1,))["top1"] == 1


def test_protocol_names_templates_and_normalisation():
    arguments = (range(2), [0, 1], ["cat", "dog"], ["a {}", "one {}"])
    protocol = evaluate(Table([0, 90], PROMPTS), *arguments, renormalize=False)["protocol"]
    assert "templates: 2" in protocol
    assert "not re-normalised" in protocol
    assert "not re-normalised" not in evaluate(Table([0, 90], PROMPTS), *arguments)["protocol"]


# Languages


def test_languages_are_evaluated_apart():
    model = Table([10, 80], {**PETS, "Katze": 0, "Hund": 170})
    scores = evaluate(model, range(2), [0, 1], {"en": ["cat", "dog"], "de": ["Katze", "Hund"]}, ks=(1,))
    assert (scores["en_top1"], scores["de_top1"]) == (1, 0.5)


def test_each_language_has_its_templates():
    model = Table([10, 80], {"a cat": 0, "a dog": 90, "eine Katze": 0, "eine Hund": 90})
    names = {"en": ["cat", "dog"], "de": ["Katze", "Hund"]}
    scores = evaluate(model, range(2), [0, 1], names, {"en": ["a {}"], "de": ["eine {}"]})
    assert (scores["en_top1"], scores["de_top1"]) == (1, 1)


def test_primary_metric_is_a_key_of_the_results():
    evaluator = ZeroShotClassificationEvaluator(
        range(2), [0, 1], {"de": ["cat", "dog"]}, name="pets", show_progress_bar=False
    )
    assert evaluator.primary_metric == "pets_de_top1"
    assert evaluator.primary_metric in evaluator(Table([10, 80], PETS))


# Output and errors


def test_results_are_written_as_json(tmp_path):
    evaluator = ZeroShotClassificationEvaluator(range(2), [0, 1], ["cat", "dog"], name="pets", show_progress_bar=False)
    results = evaluator(Table([10, 80], PETS), output_path=str(tmp_path), epoch=1, steps=7)
    assert json.loads((tmp_path / "pets.json").read_text()) == {"epoch": 1, "steps": 7, **results}


def test_other_number_of_labels_is_refused():
    with pytest.raises(ValueError, match="3 images but 2 labels"):
        ZeroShotClassificationEvaluator(range(3), [0, 1], ["cat", "dog"])


def test_label_without_a_name_is_refused():
    with pytest.raises(ValueError, match="label 2 has no name among the 2"):
        ZeroShotClassificationEvaluator(range(3), [0, 1, 2], ["cat", "dog"])


def test_negative_label_is_refused():
    with pytest.raises(ValueError, match="-1"):
        ZeroShotClassificationEvaluator(range(2), [0, -1], ["cat", "dog"])


def test_language_without_templates_is_refused():
    with pytest.raises(ValueError, match=r"names in 'de', but no templates; there are \['en'\]"):
        ZeroShotClassificationEvaluator(range(1), [0], {"en": ["cat"], "de": ["Katze"]}, {"en": ["a {}"]})


# On a real model


def test_scores_are_those_of_the_models_embeddings(model, images):
    names, labels = ["apple", "car", "dog"], np.arange(12) % 3
    scores = evaluate(model, images, labels, names, ["a red {}"])
    nearest = (model.encode(images) @ model.encode([f"a red {name}" for name in names]).T).argmax(1)
    assert scores["top1"] == np.mean(nearest == labels)


def test_frozen_features_stand_for_their_images(model, images, texts):
    store = model.extract_features(list(zip(images, texts)), show_progress_bar=False)
    arguments = (np.arange(12) % 3, ["apple", "car", "dog"])
    assert evaluate(model, store["image"], *arguments) == pytest.approx(evaluate(model, images, *arguments))


def test_labels_may_be_a_list_an_array_or_a_tensor(model, images):
    kinds = (list, np.array, torch.tensor)
    results = [evaluate(model, images, kind([0, 1, 2] * 4), ["apple", "car", "dog"]) for kind in kinds]
    assert results[0] == results[1] == results[2]


# Classes without a name, and the picture


def test_classes_without_a_name_are_left_out_with_their_images():
    # German has no word for the dog: image 1 goes, and with it the class that image 2 would have been taken for.
    model = Table([10, 80, 100], {**PETS, "Katze": 0, "Eule": 180})
    names = {"en": ["cat", "dog", "owl"], "de": ["Katze", None, "Eule"]}
    scores = evaluate(model, range(3), [0, 1, 2], names, ks=(1,))
    assert (scores["en_top1"], scores["de_top1"]) == (pytest.approx(2 / 3), 1)
    assert (scores["de_n_images"], scores["de_n_classes"]) == (2, 2)
    assert (scores["en_top1_chance"], scores["de_top1_chance"]) == (pytest.approx(1 / 3), 0.5)
    assert scores["de_mean_per_class"] == 1


def test_language_that_names_no_class_of_any_image_is_refused():
    names = {"en": ["cat", "dog"], "de": [None, "Hund"]}
    with pytest.raises(ValueError, match="no image has a class with a name in 'de'"):
        evaluate(Table([10], {**PETS, "Hund": 90}), range(1), [0], names)


def test_descriptions_are_asked_instead_of_templates():
    model = Table([10, 80], {"it purrs": 0, "it meows": 20, "a dog": 90})
    descriptions = {"cat": ["it purrs", "it meows"]}
    scores = evaluate(model, range(2), [0, 1], ["cat", "dog"], ["a {}"], descriptions, ks=(1,))
    assert scores["top1"] == 1
    assert sorted(model.asked) == ["a dog", "it meows", "it purrs"]
    assert "descriptions of 1 of 2 classes" in scores["protocol"]


def test_more_classes_than_images_can_be_evaluated():
    prompts = {f"class {i}": 3.0 * i for i in range(50)}
    scores = evaluate(Table([60, 9], prompts), range(2), [20, 3], list(prompts))
    assert (scores["top1"], scores["mean_per_class"], scores["top1_chance"]) == (1, 1, 0.02)


def confusion(monkeypatch) -> list:
    """What would be drawn: names, labels and predictions."""
    drawn: list = []
    monkeypatch.setattr("freezealign.evaluation.zero_shot.draw_confusion", lambda path, *rest: drawn.append(rest))
    return drawn


def test_confusion_is_of_the_first_language_and_its_own_classes(monkeypatch, tmp_path):
    drawn = confusion(monkeypatch)
    evaluator = ZeroShotClassificationEvaluator(
        range(4), [0, 1, 2, 2], {"de": ["Katze", None, "Eule"], "en": ["cat", "dog", "owl"]}, show_progress_bar=False
    )
    evaluator(Table([10, 80, 100, 20], {**PETS, "Katze": 0, "Eule": 180}), tmp_path)
    ((names, labels, predicted),) = drawn
    assert names == ["Katze", "Eule"]
    assert (labels.tolist(), predicted.tolist()) == ([0, 1, 1], [0, 1, 0])


def test_nothing_is_drawn_without_a_folder(monkeypatch):
    drawn = confusion(monkeypatch)
    evaluate(Table([10, 80], PETS), range(2), [0, 1], ["cat", "dog"])
    assert drawn == []


@pytest.mark.parametrize("names", [["cat", "dog", "owl"], ["ca$t", "猫", "a_{$x^$}"], ["x" * 200, "$", ""]])
def test_confusion_of_any_names_is_a_picture(tmp_path, names):
    draw_confusion(tmp_path / "confusion.png", names, np.array([0, 1, 2]), np.array([0, 2, 2]))
    with Image.open(tmp_path / "confusion.png") as picture:
        picture.load()


def test_confusion_shows_the_classes_with_the_most_mistakes(tmp_path):
    matrix = np.diag([2, 0, 1, 1])
    matrix[1, 3] = 2
    assert most_mistaken(matrix, 2).tolist() == [1, 3]
    assert most_mistaken(matrix, 9).tolist() == [0, 1, 2, 3]
    several = np.arange(MOST_CLASSES + 5)
    draw_confusion(tmp_path / "confusion.png", [*map(str, several)], several, several[::-1])
    with Image.open(tmp_path / "confusion.png") as picture:
        picture.load()


def test_confusion_of_a_real_model_is_written(model, images, tmp_path):
    names = ["apple", "car", "dog"]
    evaluator = ZeroShotClassificationEvaluator(images, [0, 1, 2] * 4, names, "a {}", show_progress_bar=False)
    evaluator(model, tmp_path)
    with Image.open(tmp_path / "confusion.png") as picture:
        picture.load()


def test_labels_are_whole_numbers_whatever_their_type(callable_model, images):
    names, labels = ["a", "b"], [0, 1] * 6
    expected = ZeroShotClassificationEvaluator(images, labels, names)(callable_model)
    for other in (np.array(labels, np.float32), torch.tensor(labels, dtype=torch.int16)):
        assert ZeroShotClassificationEvaluator(images, other, names)(callable_model) == expected
    with pytest.raises(ValueError, match=r"and 0\.5 is none"):
        ZeroShotClassificationEvaluator(images, [0, 0.5] * 6, names)


@pytest.mark.parametrize(
    "labels", [["cat"], [None], [[0]], np.array([["cat"]]), [1j], np.zeros((1, 1), int)], ids=lambda labels: str(labels)
)
def test_labels_that_are_no_whole_numbers_name_the_remedy(labels):
    with pytest.raises(ValueError, match=r"whole numbers, one .* \[class_names\.index\(name\) for name in labels\]"):
        ZeroShotClassificationEvaluator([0], labels, ["cat", "dog"])
