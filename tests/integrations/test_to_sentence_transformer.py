"""A FreezeAlign as a stock SentenceTransformer, and sentence-transformers' tools on a FreezeAlign."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from freezealign import FreezeAlign

sentence_transformers = pytest.importorskip("sentence_transformers")
SentenceTransformer = sentence_transformers.SentenceTransformer


@pytest.fixture(scope="module")
def paper(dinov2_folder, bert_folder) -> FreezeAlign:
    """The paper's wiring; tests of this file that use it leave it as it is."""
    return FreezeAlign({"image": dinov2_folder, "text": bert_folder}, dim=16, seed=0, device="cpu")


@pytest.fixture(scope="module")
def stock(paper):
    return paper.to_sentence_transformer()


def step(st_model, images, texts, learning_rate=0.1) -> None:
    """One optimiser step with one of sentence-transformers' own losses, as its trainer would take it."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(st_model)
    optimizer = torch.optim.SGD([p for p in st_model.parameters() if p.requires_grad], lr=learning_rate)
    st_model.train()
    loss([st_model.preprocess(images), st_model.preprocess(texts)], labels=None).backward()
    optimizer.step()
    st_model.eval()


# The same model


def test_type_is_exactly_sentence_transformers_own(stock):
    assert type(stock) is SentenceTransformer


def test_image_embeddings_are_bit_identical(paper, stock, images):
    np.testing.assert_array_equal(stock.encode(images), paper.encode(images))


def test_text_embeddings_are_bit_identical(paper, stock, texts):
    np.testing.assert_array_equal(stock.encode(texts), paper.encode(texts))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_embeddings_agree_at_any_batch_size(paper, stock, texts, batch_size):
    np.testing.assert_array_equal(
        stock.encode(texts, batch_size=batch_size), paper.encode(texts, batch_size=batch_size)
    )


def test_single_items_agree(paper, stock, images):
    np.testing.assert_array_equal(stock.encode(images[0]), paper.encode(images[0]))
    np.testing.assert_array_equal(stock.encode("a red apple"), paper.encode("a red apple"))


def test_image_paths_agree(paper, stock, images, tmp_path):
    path = str(tmp_path / "picture.png")
    images[0].save(path)
    np.testing.assert_array_equal(stock.encode([path]), paper.encode([path]))


def test_transparent_images_agree(paper, stock):
    values = np.random.default_rng(0).integers(0, 256, (30, 30, 4), dtype=np.uint8)
    picture = Image.fromarray(values, mode="RGBA")
    np.testing.assert_array_equal(stock.encode([picture]), paper.encode([picture]))


def test_towers_with_names_of_their_own_agree(paper, images, texts):
    named = FreezeAlign({"photo": list(paper.tower("image")), "caption": list(paper.tower("text"))}, device="cpu")
    converted = named.to_sentence_transformer()
    np.testing.assert_array_equal(converted.encode(images), named.encode(images))
    np.testing.assert_array_equal(converted.encode(texts), named.encode(texts))


def test_towers_of_one_modality_are_not_mistaken_for_each_other(paper, images):
    """A FreezeAlign asks which of two image towers is meant; its twin must not choose in silence."""
    encoder = paper.encoders["image"]
    twins = FreezeAlign({"left": encoder, "right": encoder}, dim=8, seed=0, device="cpu")
    with pytest.raises(ValueError, match=r"left.*right"):
        twins.to_sentence_transformer().encode(images)


def test_a_model_of_one_tower_agrees(paper, texts):
    lone = FreezeAlign({"text": list(paper.tower("text"))}, device="cpu")
    np.testing.assert_array_equal(lone.to_sentence_transformer().encode(texts), lone.encode(texts))


def test_width_and_similarity_agree(paper, stock):
    assert stock.get_embedding_dimension() == paper.get_embedding_dimension()
    assert stock.similarity_fn_name == paper.similarity_fn_name


def test_similarities_agree(paper, stock, images, texts):
    first, second = paper.encode(images), paper.encode(texts)
    torch.testing.assert_close(stock.similarity(first, second), paper.similarity(first, second))


def test_converting_leaves_the_model_as_it_was(model, texts):
    before = model.encode(texts)
    model.to_sentence_transformer()
    np.testing.assert_array_equal(model.encode(texts), before)
    assert not model.training


def test_parameters_are_shared_not_copied(paper, stock):
    ours = {id(p) for name in paper.towers for p in paper.tower(name).parameters()}
    assert {id(parameter) for parameter in stock.parameters()} == ours


# Folders


@pytest.fixture(scope="module")
def saved(paper, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    paper.save_pretrained(folder)
    return folder


def test_our_folder_opens_as_a_sentence_transformer(paper, saved, images, texts):
    loaded = SentenceTransformer(str(saved), device="cpu", trust_remote_code=True)
    np.testing.assert_array_equal(loaded.encode(images), paper.encode(images))
    np.testing.assert_array_equal(loaded.encode(texts), paper.encode(texts))


def test_trained_model_opens_as_a_sentence_transformer(model, pairs, images, texts, tmp_path):
    model.fit(pairs, epochs=1, batch_size=6, show_progress_bar=False)
    model.save_pretrained(tmp_path)
    loaded = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    np.testing.assert_array_equal(loaded.encode(texts), model.encode(texts))
    np.testing.assert_array_equal(loaded.encode(images), model.encode(images))


def test_its_own_save_opens_again(paper, stock, images, texts, tmp_path):
    stock.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    np.testing.assert_array_equal(loaded.encode(images), paper.encode(images))
    np.testing.assert_array_equal(loaded.encode(texts), paper.encode(texts))


def test_its_own_save_holds_no_frozen_weights(paper, stock, tmp_path):
    from safetensors.torch import load_file

    stock.save_pretrained(str(tmp_path))
    numbers = sum(t.numel() for path in tmp_path.rglob("*.safetensors") for t in load_file(path).values())
    assert numbers == paper.num_parameters(only_trainable=True) - 1  # all but the temperature


def test_our_folder_names_the_model_type(saved):
    assert json.loads((saved / "config_sentence_transformers.json").read_text())["model_type"] == "SentenceTransformer"


# Training one trains the other


def test_training_with_its_losses_trains_the_model(model, images, texts):
    converted = model.to_sentence_transformer()
    before = {item: model.encode([item]) for item in ("a red apple",)}
    pictures = model.encode(images)
    step(converted, images, texts)
    assert not np.allclose(model.encode(["a red apple"]), before["a red apple"], atol=1e-4)
    assert not np.allclose(model.encode(images), pictures, atol=1e-4)
    np.testing.assert_array_equal(model.encode(images), converted.encode(images))


def test_training_with_its_losses_leaves_the_encoders_frozen(model, images, texts):
    frozen = {name: copy.deepcopy(encoder.state_dict()) for name, encoder in model.encoders.items()}
    step(model.to_sentence_transformer(), images, texts)
    for name, encoder in model.encoders.items():
        assert all(torch.equal(value, frozen[name][key]) for key, value in encoder.state_dict().items())


def test_its_training_mode_does_not_wake_the_encoders(model):
    converted = model.to_sentence_transformer()
    converted.train()
    assert not any(part.training for encoder in model.encoders.values() for part in encoder.modules())


def test_fit_trains_the_sentence_transformer(model, pairs, texts):
    converted = model.to_sentence_transformer()
    before = converted.encode(texts)
    model.fit(pairs, epochs=2, batch_size=6, show_progress_bar=False)
    after = converted.encode(texts)
    assert not np.allclose(after, before, atol=1e-4)
    np.testing.assert_array_equal(after, model.encode(texts))


# Its evaluators, on a FreezeAlign directly


def test_information_retrieval_evaluator_runs(paper, images, texts):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    evaluator = InformationRetrievalEvaluator(
        queries={f"q{i}": text for i, text in enumerate(texts)},
        corpus={f"d{i}": image for i, image in enumerate(images)},
        relevant_docs={f"q{i}": {f"d{i}"} for i in range(len(texts))},
        name="pairs",
        accuracy_at_k=[1, 12],
        write_csv=False,
    )
    scores = evaluator(paper)
    ranks = np.argsort(-(paper.encode(texts) @ paper.encode(images).T), axis=1)
    assert scores["pairs_cosine_accuracy@1"] == np.mean(ranks[:, 0] == np.arange(12))
    assert scores["pairs_cosine_accuracy@12"] == 1


def test_information_retrieval_evaluator_agrees_with_the_stock_model(paper, stock, images, texts):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    evaluator = InformationRetrievalEvaluator(
        queries={str(i): text for i, text in enumerate(texts)},
        corpus={str(i): image for i, image in enumerate(images)},
        relevant_docs={str(i): {str(i)} for i in range(len(texts))},
        write_csv=False,
    )
    assert evaluator(paper) == evaluator(stock)


def test_embedding_similarity_evaluator_runs(paper, texts):
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    scores = np.linspace(0, 1, 6)
    evaluator = EmbeddingSimilarityEvaluator(texts[:6], texts[6:], scores.tolist(), name="pairs", write_csv=False)
    assert -1 <= evaluator(paper)["pairs_spearman_cosine"] <= 1


def test_triplet_evaluator_runs(paper, images, texts):
    from sentence_transformers.sentence_transformer.evaluation import TripletEvaluator

    evaluator = TripletEvaluator(texts[:4], images[:4], images[4:8], name="triplets", write_csv=False)
    anchors, positives, negatives = paper.encode(texts[:4]), paper.encode(images[:4]), paper.encode(images[4:8])
    nearer = (anchors * positives).sum(1) > (anchors * negatives).sum(1)
    assert evaluator(paper)["triplets_cosine_accuracy"] == nearer.mean()


def test_translation_evaluator_runs(paper, images, texts):
    from sentence_transformers.sentence_transformer.evaluation import TranslationEvaluator

    scores = TranslationEvaluator(texts, images, name="pairs", write_csv=False)(paper)
    assert 0 <= scores["pairs_mean_accuracy"] <= 1


def test_its_evaluators_scores_reach_the_model_card(model, images, texts, tmp_path):
    from sentence_transformers.sentence_transformer.evaluation import TranslationEvaluator

    TranslationEvaluator(texts, images, name="emoji", write_csv=False)(model)
    model.save_pretrained(tmp_path)
    assert "emoji_mean_accuracy" in (tmp_path / "README.md").read_text()


def test_its_evaluators_run_during_fit(model, pairs, images, texts):
    from sentence_transformers.sentence_transformer.evaluation import TranslationEvaluator

    evaluator = TranslationEvaluator(texts, images, name="pairs", write_csv=False)
    history = model.fit(pairs, evaluator, epochs=2, batch_size=6, show_progress_bar=False)
    assert [set(entry) >= {"step", "epoch", "pairs_mean_accuracy"} for entry in history.evaluations] == [True, True]
