"""Prototypes: mean directions, with their provenance, from pictures, names or vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made import make_store, make_vectors
from PIL import Image

from freezealign import FreezeAlign
from freezealign.curation import Prototypes, labelled_dataset, labelled_pictures, open_pool, read_concepts
from freezealign.vectors import unit


@pytest.fixture(scope="module")
def model(dinov2_folder, bert_folder):
    return FreezeAlign({"image": dinov2_folder, "text": bert_folder}, recipe="pooled", dim=8, device="cpu")


@pytest.fixture
def folder(tmp_path):
    """Pictures of two concepts, four each."""
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / "shots" / name).mkdir(parents=True)
        for number in range(4):
            rng = np.random.default_rng([*colour, number])
            pixels = np.clip(rng.normal(colour, 40, (9, 9, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "shots" / name / f"{number}.png")
    return tmp_path / "shots"


def test_prototype_is_the_mean_direction():
    vectors = make_vectors(5)
    made = Prototypes.from_vectors(vectors, ["b", "a", "b", "b", "a"])
    assert made.names == ("b", "a")
    torch.testing.assert_close(made.vectors[0], unit(unit(vectors)[[0, 2, 3]].mean(0)))
    assert made.provenance["examples"] == {"b": 3, "a": 2}
    torch.testing.assert_close(made.vectors.norm(dim=1), torch.ones(2))


def test_lengths_of_examples_make_no_difference():
    vectors, labels = make_vectors(4), ["a", "a", "b", "b"]
    scaled = Prototypes.from_vectors(vectors * np.array([[9], [1], [1], [3]]), labels)
    torch.testing.assert_close(scaled.vectors, Prototypes.from_vectors(vectors, labels).vectors)


def test_pictures_of_a_folder_are_seen_as_a_pool_sees_them(model, folder):
    made = Prototypes.from_images(model, folder, show_progress_bar=False)
    data = [{"image": path, "text": "a car"} for path in labelled_pictures(folder)["red"]]
    store = model.extract_features(data, level="pooled", show_progress_bar=False)
    expected = unit(store["image"].load(np.arange(4))["sentence_embedding"]).mean(0)
    assert made.names == ("blue", "red")
    torch.testing.assert_close(made.vectors[1], unit(expected))
    made.check(open_pool(store))


def test_shots_are_drawn_by_seed(model, folder):
    first, same, other = (
        Prototypes.from_images(model, folder, shots=2, seed=seed, show_progress_bar=False) for seed in (0, 0, 1)
    )
    assert first.provenance["examples"] == {"blue": 2, "red": 2}
    assert first.digest() == same.digest() != other.digest()


def test_broken_picture_is_skipped_and_listed(model, folder):
    (folder / "red" / "1.png").write_bytes(b"broken")
    made = Prototypes.from_images(model, folder, show_progress_bar=False)
    assert made.provenance["examples"] == {"blue": 4, "red": 3}
    (skipped,) = made.provenance["skipped"]
    assert skipped["concept"] == "red"
    assert "1.png" in skipped["reason"]


def test_concept_without_a_readable_picture_is_an_error(model, folder):
    for path in (folder / "red").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"no example of \['red'\] can be read"):
        Prototypes.from_images(model, folder, show_progress_bar=False)


def test_names_are_read_in_templates(model):
    made = Prototypes.from_texts(model, ["car", "dog"], ["a {}", "a red {}"], show_progress_bar=False)
    assert made.provenance["templates"] == ["a {}", "a red {}"]
    assert made.provenance["examples"] == {"car": 2, "dog": 2}
    one = model.extract_features(
        [{"text": "a dog"}, {"text": "a red dog"}], modalities=["text"], level="pooled", show_progress_bar=False
    )
    torch.testing.assert_close(made.vectors[1], unit(unit(one["text"].load([0, 1])["sentence_embedding"]).mean(0)))


def test_data_set_with_labels_gives_its_images(model, folder):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [str(folder / "red/0.png"), str(folder / "blue/0.png")], "label": [1, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "red"])})
    found = labelled_dataset(datasets.Dataset.from_dict(rows, features=features))
    assert set(found) == {"red", "blue"}
    made = Prototypes.from_images(model, found, show_progress_bar=False)
    assert made.provenance["examples"] == {"red": 1, "blue": 1}
    with pytest.raises(ValueError, match=r"no column \['fine'\]"):
        labelled_dataset(datasets.Dataset.from_dict(rows), label="fine")


def test_saved_is_loaded(model, folder, tmp_path):
    made = Prototypes.from_images(model, folder, shots=3, show_progress_bar=False)
    made.save(tmp_path / "p.safetensors")
    loaded = Prototypes.load(tmp_path / "p.safetensors")
    assert (loaded.names, loaded.origin, loaded.provenance) == (made.names, made.origin, made.provenance)
    assert loaded.digest() == made.digest()


@pytest.mark.parametrize("content", [None, b"", b"something else"])
def test_file_of_something_else_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "p.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="holds no prototypes"):
        Prototypes.load(tmp_path / "p.safetensors")


def test_other_width_or_encoder_is_refused(model, folder):
    made = Prototypes.from_images(model, folder, show_progress_bar=False)
    with pytest.raises(ValueError, match=r"the prototypes are 24 wide, the vectors of .* 6"):
        made.check(open_pool(make_store(make_vectors())))
    with pytest.raises(ValueError, match="made by another encoder"):
        made.check(open_pool(make_store(make_vectors(width=24))))


@pytest.mark.parametrize("vectors", [np.zeros((2, 3)), np.array([[1.0, 0], [-1, 0]]), np.array([[np.nan, 1], [1, 1]])])
def test_examples_without_a_mean_are_refused(vectors):
    with pytest.raises(ValueError, match=r"the examples of \['a'\] have no mean direction"):
        Prototypes.from_vectors(vectors, ["a", "a"])


def test_labels_and_names_go_with_vectors():
    with pytest.raises(ValueError, match="2 vectors have 1 labels"):
        Prototypes.from_vectors(make_vectors(2), ["a"])
    with pytest.raises(ValueError, match="more than once"):
        Prototypes(("a", "a"), torch.eye(2))


@pytest.mark.parametrize(
    ("name", "modality", "error", "message"),
    [
        ("nothing", "image", FileNotFoundError, "there are no concepts"),
        ("shots", "text", ValueError, "Compare like with like"),
        ("names.txt", "image", ValueError, "Compare like with like"),
        ("names.txt", "text", ValueError, "does not tell which encoder"),
    ],
)
def test_concepts_that_cannot_be_compared_are_refused(name, modality, error, message, folder):
    (folder.parent / "names.txt").write_text("car\ndog\n")
    np.save(folder.parent / "a.npy", make_vectors())
    with pytest.raises(error, match=message):
        read_concepts(folder.parent / name, open_pool(folder.parent), modality)
