"""mteb's own tasks on a FreezeAlign, with data made on the spot."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from taught import CLASSES, plain_colours, teach

from freezealign import FreezeAlign, FrozenEncoder, RetrievalEvaluator, ZeroShotClassificationEvaluator
from freezealign.encoders.callable import CallableEncoder

mteb = pytest.importorskip("mteb")

CONTEXT = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}


@pytest.fixture
def images() -> list[Image.Image]:
    return plain_colours()


@pytest.fixture
def taught(model, images, texts) -> FreezeAlign:
    return teach(model, images, texts)


def describe(kind: str, name: str, **facts):
    """The metadata of a task; what is left open does not touch the scores."""
    from mteb.abstasks.task_metadata import TaskMetadata

    unknown = ("date", "domains", "task_subtypes", "license", "annotations_creators", "dialect", "sample_creation")
    return TaskMetadata(
        name=name,
        type=kind,
        description="Made on the spot.",
        reference="https://example.com",
        dataset={"path": "local/pictures", "revision": "0"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        bibtex_citation=None,
        **dict.fromkeys(unknown),
        **facts,
    )


def classify(images, labels, modalities):
    """A task whose metadata spells its modalities in one order or the other: mteb scores the two in different ways."""
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskZeroShotClassification

    class Pictures(AbsTaskZeroShotClassification):
        metadata = describe(
            "ZeroShotClassification", "Pictures", category="i2t", modalities=modalities, main_score="accuracy"
        )

        def load_data(self, **_):
            self.dataset = DatasetDict({"test": Dataset.from_dict({"image": images, "label": labels})})
            self.data_loaded = True

        def get_candidate_labels(self):
            return CLASSES

    return Pictures()


def retrieve(category: str, queries: dict, corpus: dict, relevant: list[list[int]]):
    """A task in which query i is to find the documents ``relevant[i]``."""
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    class Pairs(AbsTaskRetrieval):
        metadata = describe(
            "Any2AnyRetrieval", "Pairs", category=category, modalities=["text", "image"], main_score="ndcg_at_10"
        )

        def load_data(self, **_):
            split = {
                "queries": numbered("q", queries),
                "corpus": numbered("d", corpus),
                "relevant_docs": {f"q{i}": {f"d{j}": 1 for j in found} for i, found in enumerate(relevant)},
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Pairs()


def numbered(letter: str, columns: dict):
    from datasets import Dataset

    count = len(next(iter(columns.values())))
    return Dataset.from_dict({"id": [f"{letter}{index}" for index in range(count)], **columns})


def run(model, task, **encode_kwargs) -> dict:
    options = {"encode_kwargs": {"show_progress_bar": False, **encode_kwargs}, "show_progress_bar": False}
    result = mteb.evaluate(model.as_mteb(), task, cache=None, co2_tracker=False, **options)
    return result.task_results[0].scores["test"][0]


def embed(model, *batches, **options) -> np.ndarray:
    return model.as_mteb().encode(batches, **CONTEXT, show_progress_bar=False, **options).numpy()


def ndcg(queries: np.ndarray, corpus: np.ndarray, relevant: list[list[int]], k: int = 10) -> float:
    """Normalised discounted cumulative gain, by its definition."""
    gains = 1 / np.log2(np.arange(k) + 2)
    scores = []
    for row, right in zip(queries @ corpus.T, relevant):
        hits = np.isin(np.argsort(-row)[:k], right)
        scores.append((hits * gains[: len(hits)]).sum() / gains[: len(right)].sum())
    return float(np.mean(scores))


# Its tasks


@pytest.mark.parametrize("modalities", [["text", "image"], ["image", "text"]])
def test_its_zero_shot_task_gives_our_accuracy(taught, images, modalities):
    labels = [index // 2 for index in range(12)]
    ours = ZeroShotClassificationEvaluator(images, labels, CLASSES, ks=(1,), show_progress_bar=False)(taught)
    assert 0.2 < ours["top1"] < 1
    assert run(taught, classify(images, labels, modalities))["accuracy"] == pytest.approx(ours["top1"])


def test_its_retrieval_of_images_gives_our_recall(taught, images, texts):
    ours = RetrievalEvaluator(images, texts, ks=(1, 3, 5), show_progress_bar=False)(taught)
    relevant = [[index] for index in range(12)]
    theirs = run(taught, retrieve("t2i", {"text": texts}, {"image": images}, relevant))
    assert 0.1 < ours["t2i_R@1"] < 1
    for k in (1, 3, 5):
        assert theirs[f"recall_at_{k}"] == pytest.approx(ours[f"t2i_R@{k}"], abs=1e-5)
    expected = ndcg(taught.encode_text(texts), taught.encode_image(images), relevant)
    assert theirs["ndcg_at_10"] == pytest.approx(expected, abs=1e-5)


def test_its_retrieval_of_texts_gives_our_recall(taught, images, texts):
    captions = [[text, text.replace("red", "green")] for text in texts]
    flat = [caption for both in captions for caption in both]
    relevant = [[2 * index, 2 * index + 1] for index in range(12)]
    ours = RetrievalEvaluator(images, captions, ks=(1, 3, 5), show_progress_bar=False)(taught)
    theirs = run(taught, retrieve("i2t", {"image": images}, {"text": flat}, relevant))
    assert 0.1 < ours["i2t_R@1"] < 1
    for k in (1, 3, 5):
        assert theirs[f"hit_rate_at_{k}"] == pytest.approx(ours[f"i2t_R@{k}"], abs=1e-5)
    expected = ndcg(taught.encode_image(images), taught.encode_text(flat), relevant)
    assert theirs["ndcg_at_10"] == pytest.approx(expected, abs=1e-5)


def test_its_retrieval_with_queries_of_image_and_text_finds_their_sum(taught, images, texts):
    sums = embed(taught, {"image": images, "text": texts})
    corpus, relevant = taught.encode_text(texts[::-1]), [[index] for index in range(12)]
    theirs = run(taught, retrieve("it2t", {"image": images, "text": texts}, {"text": texts[::-1]}, relevant))
    assert theirs["ndcg_at_10"] == pytest.approx(ndcg(sums, corpus, relevant), abs=1e-5)


# Embeddings


def test_texts_and_images_are_embedded_as_encode_does(model, images, texts):
    np.testing.assert_allclose(embed(model, {"text": texts, "id": texts}), model.encode_text(texts), atol=1e-6)
    np.testing.assert_allclose(embed(model, {"image": images}), model.encode_image(images), atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_images_of_any_mode_are_embedded_as_encode_does(model, images, mode):
    picture = Image.new("I;16", (30, 30), 40_000) if mode == "I;16" else images[7].convert(mode)
    np.testing.assert_allclose(embed(model, {"image": [picture]}), model.encode_image([picture]), atol=1e-6)


def test_image_with_text_is_the_unit_sum_of_both(model, images, texts):
    expected = model.encode_image(images) + model.encode_text(texts)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(model, {"image": images, "text": texts}), expected, atol=1e-6)


def test_batches_of_any_size_are_made_batches_of_the_size_asked_for(model, images):
    sizes = []
    model.encoders["image"].register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0]["pixel_values"])))
    embeddings = embed(model, *({"image": [image]} for image in images), batch_size=5)
    assert sizes == [5, 5, 2]
    np.testing.assert_allclose(embeddings, model.encode_image(images), atol=1e-6)


def test_batch_size_of_an_evaluation_reaches_the_encoder(taught, images):
    sizes = []
    taught.encoders["image"].register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0]["pixel_values"])))
    run(taught, classify(images, [index // 2 for index in range(12)], ["text", "image"]), batch_size=8)
    assert sizes == [8, 4]


def test_option_it_does_not_know_is_refused(model, texts):
    with pytest.raises(TypeError, match="precision"):
        embed(model, {"text": texts}, precision="int8")


def test_similarity_is_the_models(model, images, texts):
    adapter, pictures, sentences = model.as_mteb(), model.encode_image(images), model.encode_text(texts)
    torch.testing.assert_close(adapter.similarity(pictures, sentences), model.similarity(pictures, sentences))
    torch.testing.assert_close(
        adapter.similarity_pairwise(pictures, sentences), model.similarity_pairwise(pictures, sentences)
    )


def test_batch_without_anything_to_embed_is_refused(model):
    with pytest.raises(ValueError, match=r"\['audio', 'id'\].*\['text', 'image'\]"):
        embed(model, {"id": ["q0"], "audio": [None]})


# What mteb knows of the model


def test_meta_states_the_model(model):
    meta = model.as_mteb("lab/tiny", "7").mteb_model_meta
    assert (meta.name, meta.revision, meta.modalities) == ("lab/tiny", "7", ["text", "image"])
    assert (meta.embed_dim, meta.framework, meta.similarity_fn_name.value) == (16, ["PyTorch"], "cosine")


def test_default_name_is_that_of_the_encoders_without_their_folders(model):
    names = "+".join(encoder.name.rsplit("/", 1)[1] for encoder in model.encoders.values())
    assert model.as_mteb().mteb_model_meta.name == f"freezealign/{names}"


def test_name_without_an_organisation_is_refused(model):
    with pytest.raises(ValueError, match="organization/model_name"):
        model.as_mteb("tiny")


def test_model_of_one_modality_says_so(bert_folder):
    meta = FreezeAlign({"text": bert_folder}, dim=8, device="cpu").as_mteb().mteb_model_meta
    assert meta.modalities == ["text"]


def test_model_that_reads_neither_is_refused():
    encoder = FrozenEncoder(CallableEncoder(lambda items: np.ones((len(items), 4)), "sound", dim=4))
    with pytest.raises(ValueError, match=r"\['sound'\]"):
        FreezeAlign([encoder], dim=8, device="cpu").as_mteb()


def revision(model) -> str:
    return model.as_mteb().mteb_model_meta.revision


def test_revision_is_the_same_after_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert revision(FreezeAlign.from_pretrained(tmp_path, device="cpu")) == revision(model)


def test_training_changes_the_revision(model, pairs):
    before = revision(model)
    model.fit(pairs, epochs=1, batch_size=6, show_progress_bar=False)
    assert revision(model) != before


def test_other_encoder_under_the_same_projectors_changes_the_revision(model, dinov2_folder):
    before = revision(model)
    model.swap_encoder("image", FrozenEncoder(dinov2_folder, image_size=14))
    assert revision(model) != before


def test_other_pooling_of_the_same_weights_changes_the_revision(dinov2_folder, bert_folder):
    folders = {"image": dinov2_folder, "text": bert_folder}
    model = FreezeAlign(folders, recipe="token", dim=16, seed=0, device="cpu")
    before = revision(model)
    pooling = next(block for block in model.tower("image") if hasattr(block, "mode"))
    pooling.mode = "max" if pooling.mode != "max" else "mean"
    assert revision(model) != before


def test_missing_package_is_named_with_its_remedy(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'freezealign\[eval\]'"):
        model.as_mteb()


def test_an_empty_text_has_the_vector_of_its_special_tokens(bert_folder):
    """A task cannot leave a row out."""
    model = FreezeAlign({"text": bert_folder}, dim=8, seed=0, device="cpu")
    wrapped = model.as_mteb("me/model", "1")
    given = [{"text": ["a cat", "", "two dogs", " "]}]
    found = wrapped.encode(given, task_metadata=None, hf_split="", hf_subset="", show_progress_bar=False)
    np.testing.assert_allclose(found[[0, 2]], model.encode(["a cat", "two dogs"]), atol=1e-6)
    tokens = model.encoders["text"].encoder.tokenizer([""], return_tensors="pt")
    nothing = model({"text": dict(tokens)})["text"].detach()
    np.testing.assert_allclose(found[[1, 3]], nothing.expand(2, -1), atol=1e-6)
