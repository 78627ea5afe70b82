"""Training: it learns, it repeats itself exactly, and it does the same with and without a cache."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from freezealign import (
    FitArguments,
    FreezeAlign,
    FrozenEncoder,
    LogitScale,
    Pooling,
    RetrievalEvaluator,
    TokenProjector,
)
from freezealign.encoders.callable import CallableEncoder
from freezealign.training.checkpoints import trained_parameters
from freezealign.training.trainer import make_optimizer

QUIET = {"show_progress_bar": False}
CAPTIONS = [["a", "a red apple"], ["a car"], ["a dog", "a blue dog", "number 1 2 3 4"]]


def fit(model: FreezeAlign, data, evaluator=None, **options):
    return model.fit(data, evaluator, **{"schedule": "paper", "epochs": 2, "batch_size": 4, **QUIET, **options})


def trained(model: FreezeAlign) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def assert_same_weights(first: FreezeAlign, second: FreezeAlign, atol: float) -> None:
    one, other = trained(first), trained(second)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def constant(items) -> np.ndarray:
    """An encoder to which everything is alike."""
    return np.ones((len(items), 4), np.float32)


def collate(batch):
    return [image for image, _ in batch], [text for _, text in batch]


@pytest.fixture
def many(images, texts) -> list:
    """Twelve pairs, a third with two captions and a third with three."""
    several = [[text, f"blue {text}", f"green car {text}"][: 1 + i % 3] for i, text in enumerate(texts[:10] * 2)]
    return list(zip(images, several))


@pytest.fixture
def toy() -> tuple[FreezeAlign, list]:
    """Two views of one hidden vector: learnable, but not by a model that has not been trained."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(48, 4))
    views = [
        (hidden @ rng.normal(size=(4, 16)) + 0.05 * rng.normal(size=(48, 16))).astype(np.float32) for _ in range(2)
    ]
    encoders = [FrozenEncoder(CallableEncoder(np.stack, name, 16)) for name in ("left", "right")]
    return FreezeAlign(encoders, dim=16, seed=0, device="cpu"), list(zip(*views))


@pytest.fixture
def patterns() -> tuple[list, list]:
    """Twelve pictures of sixteen coloured squares each, and a name of random letters for each."""
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    names = ["".join(rng.choice(list("abcdefghijklmnop"), 8)) for _ in range(12)]
    return [Image.fromarray(values).resize((32, 32), Image.Resampling.NEAREST) for values in squares], names


def without_dropout(model: FreezeAlign) -> FreezeAlign:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def recall(model: FreezeAlign, data) -> float:
    left, right = (model.encode([pair[i] for pair in data], modality=name) for i, name in enumerate(("left", "right")))
    return float((model.similarity(left, right).argmax(1) == torch.arange(len(data))).float().mean())


# It learns


def test_loss_falls_and_retrieval_becomes_perfect(toy):
    model, data = toy
    assert recall(model, data) < 0.3
    history = fit(model, data, epochs=40, batch_size=24, learning_rate=3e-3)
    assert np.mean(history.losses[-4:]) < 0.3 * np.mean(history.losses[:4])
    assert recall(model, data) == 1


def test_images_find_their_texts_and_texts_their_images(callable_model, patterns):
    pictures, names = patterns
    fit(callable_model, list(zip(pictures, names)), epochs=80, batch_size=12, learning_rate=5e-3)
    similarity = callable_model.similarity(callable_model.encode(pictures), callable_model.encode(names))
    assert similarity.argmax(1).tolist() == list(range(12))
    assert similarity.argmax(0).tolist() == list(range(12))


def test_loss_is_the_symmetric_info_nce(callable_model, images, texts):
    """With the projectors' dropout off, the first loss can be worked out by hand from the embeddings."""
    without_dropout(callable_model)
    data = list(zip(images[:3], texts[:3]))
    logits = callable_model.encode(images[:3]) @ callable_model.encode(texts[:3]).T / 0.07
    rows = -np.diag(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    columns = -np.diag(logits - np.log(np.exp(logits).sum(0, keepdims=True)))
    history = fit(callable_model, data, epochs=1, batch_size=3)
    assert history.losses[0] == pytest.approx((rows.mean() + columns.mean()) / 2, abs=1e-5)


def test_everything_trainable_is_trained(model, pairs):
    before = trained(model)
    fit(model, pairs, epochs=3)
    assert [name for name, value in trained(model).items() if torch.equal(value, before[name])] == []


def test_projectors_drop_out_while_they_train(callable_model, pairs):
    """The same data and weights, other dropout: other losses."""
    dry = without_dropout(copy.deepcopy(callable_model))
    assert fit(callable_model, pairs).losses != fit(dry, pairs).losses


def test_fit_can_be_called_again_to_go_on(toy):
    model, data = toy
    first = fit(model, data, epochs=5, batch_size=24)
    second = fit(model, data, epochs=5, batch_size=24)
    assert np.mean(second.losses) < np.mean(first.losses)


def test_model_is_ready_to_encode_after_fit(callable_model, pairs):
    fit(callable_model, pairs)
    assert not callable_model.training


# With and without a cache


@pytest.mark.parametrize("fixture", ["pairs", "many"], ids=["one caption", "several captions"])
def test_cached_equals_uncached(model, fixture, request):
    data, other = request.getfixturevalue(fixture), copy.deepcopy(model)
    cached = fit(model, data, epochs=3, batch_size=5)
    uncached = fit(other, data, epochs=3, batch_size=5, cache_features=False)
    np.testing.assert_allclose(uncached.losses, cached.losses, atol=1e-5)
    assert_same_weights(model, other, atol=1e-5)


def test_cached_equals_uncached_for_functions(callable_model, many):
    other = copy.deepcopy(callable_model)
    cached = fit(callable_model, many)
    assert fit(other, many, cache_features=False).losses == cached.losses
    assert_same_weights(callable_model, other, atol=0)


def test_store_equals_its_data(model, many):
    other = copy.deepcopy(model)
    store = model.extract_features(many, **QUIET)
    assert fit(model, store, batch_size=5).losses == fit(other, many, batch_size=5).losses
    assert_same_weights(model, other, atol=0)


def test_store_on_disk_equals_its_data(model, many, tmp_path):
    from freezealign import FeatureStore

    other = copy.deepcopy(model)
    model.extract_features(many, tmp_path / "store", dtype="float32", **QUIET)
    losses = fit(model, FeatureStore.open(tmp_path / "store"), batch_size=5).losses
    assert losses == fit(other, many, batch_size=5).losses


def test_batch_size_of_the_encoders_does_not_matter(model, many):
    other = copy.deepcopy(model)
    losses = fit(model, many, encode_batch_size=2).losses
    np.testing.assert_allclose(fit(other, many, encode_batch_size=12).losses, losses, atol=1e-5)


def test_encoders_run_once_with_a_cache_and_each_epoch_without(images, texts):
    seen: list[str] = []

    def letters(items):
        seen.extend(items)
        return np.stack([np.bincount([ord(c) % 8 for c in item], minlength=8).astype(np.float32) for item in items])

    def model():
        encoders = [FrozenEncoder(constant, "image"), FrozenEncoder(letters, "text")]
        return FreezeAlign(encoders, dim=4, seed=0, device="cpu")

    data, first, second = list(zip(images, texts)), model(), model()
    seen.clear()
    fit(first, data, epochs=3, batch_size=12)
    assert sorted(seen) == sorted(texts)
    seen.clear()
    fit(second, data, epochs=3, batch_size=12, cache_features=False)
    assert sorted(seen) == sorted(texts * 3)


def test_every_caption_is_used_in_time(images):
    seen: set[str] = set()

    def letters(items):
        seen.update(items)
        return constant(items)

    encoders = [FrozenEncoder(constant, "image"), FrozenEncoder(letters, "text")]
    model = FreezeAlign(encoders, dim=4, seed=0, device="cpu")
    fit(model, list(zip(images[:3], CAPTIONS)), epochs=30, batch_size=3, cache_features=False)
    assert seen >= {caption for captions in CAPTIONS for caption in captions}


# Seeds


def test_same_seed_gives_the_same_losses_and_weights(callable_model, many):
    other = copy.deepcopy(callable_model)
    assert fit(callable_model, many, seed=3).losses == fit(other, many, seed=3).losses
    assert_same_weights(callable_model, other, atol=0)


def test_other_seed_gives_other_losses(callable_model, many):
    other = copy.deepcopy(callable_model)
    assert fit(callable_model, many, seed=3).losses != fit(other, many, seed=4).losses


def test_epochs_differ_in_their_order(callable_model, images, texts):
    """A learning rate of zero and no dropout: only the order of the data can change the loss."""
    without_dropout(callable_model)
    history = fit(
        callable_model, list(zip(images, texts)), epochs=3, batch_size=4, learning_rate=0.0, final_learning_rate=0.0
    )
    assert len({round(loss, 6) for loss in history.losses}) == 9


def test_global_state_before_fit_does_not_matter(callable_model, many):
    other = copy.deepcopy(callable_model)
    torch.manual_seed(1)
    first = fit(callable_model, many).losses
    torch.manual_seed(2)
    assert fit(other, many).losses == first


@pytest.mark.parametrize("cache", [True, False])
def test_global_generators_are_left_alone(callable_model, many, cache):
    torch.manual_seed(987)  # not where a fit before this one left off
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    fit(callable_model, many, cache_features=cache)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]


@pytest.mark.parametrize("cache", [True, False])
def test_same_seed_gives_the_same_losses_with_a_shuffling_loader(callable_model, pairs, cache):
    """``seed`` is the order of the data, so whatever torch's global state is must not matter."""
    other = copy.deepcopy(callable_model)
    torch.manual_seed(1)
    first = fit(callable_model, DataLoader(pairs, 4, shuffle=True, collate_fn=collate), cache_features=cache).losses
    torch.manual_seed(2)
    again = fit(other, DataLoader(pairs, 4, shuffle=True, collate_fn=collate), cache_features=cache).losses
    assert again == first


# Batches


@pytest.mark.parametrize("cache", [True, False])
def test_data_loader_keeps_its_batch_size(callable_model, pairs, cache):
    loader = DataLoader(pairs, batch_size=3, collate_fn=collate)
    history = callable_model.fit(loader, epochs=2, cache_features=cache, **QUIET)
    assert len(history.steps) == 2 * 4


def test_stated_batch_size_wins_over_the_loaders(callable_model, pairs):
    loader = DataLoader(pairs, batch_size=3, collate_fn=collate)
    assert len(fit(callable_model, loader, epochs=1, batch_size=6).steps) == 2


def test_uncached_loader_trains_on_its_own_batches(callable_model, pairs):
    """Nothing to learn from and no dropout: the losses of a loader in order can be worked out beforehand."""
    without_dropout(callable_model)
    images, texts = (callable_model.encode([pair[i] for pair in pairs], convert_to_tensor=True) for i in (0, 1))
    expected = []
    for start in range(0, 12, 4):
        logits = images[start : start + 4] @ texts[start : start + 4].T / 0.07
        target = torch.arange(4)
        cross_entropy = torch.nn.functional.cross_entropy
        expected.append(((cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2).item())
    loader = DataLoader(pairs, batch_size=4, collate_fn=collate)
    history = fit(callable_model, loader, epochs=1, learning_rate=0.0, final_learning_rate=0.0, cache_features=False)
    np.testing.assert_allclose(history.losses, expected, atol=1e-5)


def test_uncached_loader_with_workers_trains(callable_model, pairs):
    loader = DataLoader(pairs, batch_size=4, collate_fn=collate, num_workers=1)
    assert len(fit(callable_model, loader, cache_features=False).steps) == 6


def test_loader_of_a_stream_trains_with_a_cache(callable_model, pairs):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(pairs)

    assert len(fit(callable_model, DataLoader(Stream(), batch_size=4, collate_fn=collate)).steps) == 6


def test_loader_of_a_stream_without_a_cache_trains_or_says_why_not(callable_model, pairs):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(pairs)

    loader = DataLoader(Stream(), batch_size=4, collate_fn=collate)
    try:
        history = fit(callable_model, loader, cache_features=False)
    except ValueError as error:
        assert "cache_features" in str(error)
    else:
        assert len(history.steps) == 6


def test_pairs_that_do_not_fill_a_batch_wait(callable_model, pairs):
    assert len(fit(callable_model, pairs, epochs=1, batch_size=5).steps) == 2


def test_batch_is_never_larger_than_the_data(callable_model, pairs):
    assert len(callable_model.fit(pairs, epochs=3, **QUIET).steps) == 3


def test_generator_is_cached(callable_model, pairs):
    other = copy.deepcopy(callable_model)
    assert fit(callable_model, (pair for pair in pairs)).losses == fit(other, pairs).losses


def test_generator_without_a_cache_is_refused(callable_model, pairs):
    with pytest.raises(ValueError, match=r"cache_features=False needs data that can be read again.*generator"):
        fit(callable_model, (pair for pair in pairs), cache_features=False)


def test_huggingface_dataset_trains_with_and_without_a_cache(callable_model, images, texts):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    data = datasets.Dataset.from_dict({"image": images, "text": texts}, features=features)
    other = copy.deepcopy(callable_model)
    losses = fit(callable_model, data).losses
    assert fit(other, data, cache_features=False).losses == losses


def test_selection_of_a_store_trains_on_the_selection(callable_model, pairs):
    other = copy.deepcopy(callable_model)
    store = callable_model.extract_features(pairs, **QUIET)
    chosen = [1, 3, 5, 8, 9]
    losses = fit(callable_model, store.select(chosen), batch_size=2).losses
    assert fit(other, [pairs[i] for i in chosen], batch_size=2).losses == losses


# Bad items


def bad_pairs(pairs) -> list:
    return [*pairs[:3], (pairs[3][0], ""), *pairs[4:7], ("no/such.png", "a"), *pairs[8:]]


@pytest.mark.parametrize("cache", [True, False])
def test_bad_items_are_left_out_and_listed(callable_model, pairs, cache):
    history = fit(callable_model, bad_pairs(pairs), epochs=1, cache_features=cache)
    assert sorted(entry.index for entry in history.skipped) == [3, 7]
    assert all(math.isfinite(loss) for loss in history.losses)


def test_bad_items_of_an_uncached_loader_are_listed_with_their_position(callable_model, pairs):
    loader = DataLoader(bad_pairs(pairs), batch_size=4, collate_fn=collate)
    history = fit(callable_model, loader, cache_features=False)
    assert sorted(entry.index for entry in history.skipped) == [3, 7]


@pytest.mark.parametrize("cache", [True, False])
def test_strict_raises_at_a_bad_item(callable_model, pairs, cache):
    bad = [(pairs[0][0], ""), *pairs[1:2]]
    with pytest.raises(ValueError, match=r"pair 0: .*empty"):
        fit(callable_model, bad, batch_size=2, cache_features=cache, strict=True)


def test_no_epochs_evaluate_and_change_nothing(callable_model, pairs):
    before = trained(callable_model)
    history = fit(callable_model, pairs, lambda model, output_path, epoch, steps: {"score": epoch}, epochs=0)
    assert history.evaluations == [{"step": 0, "epoch": 0, "score": 0}]
    assert all(torch.equal(value, before[name]) for name, value in trained(callable_model).items())


@pytest.mark.parametrize("cache", [True, False])
def test_nothing_but_bad_items_is_an_error(callable_model, images, cache):
    with pytest.raises(ValueError, match=r"pairs? that can be read.*pair \d+: the text is empty"):
        fit(callable_model, [(image, "") for image in images], cache_features=cache)


# What it reports


def test_history_has_a_row_for_every_step(callable_model, pairs):
    history = fit(callable_model, pairs, epochs=2, batch_size=4)
    assert [(row["step"], row["epoch"]) for row in history.steps] == [(s, 1 + (s > 3)) for s in range(1, 7)]
    assert {frozenset(row) for row in history.steps} == {
        frozenset(("step", "epoch", "loss", "temperature", "learning_rate"))
    }


def test_history_ends_with_the_models_temperature(callable_model, pairs):
    history = fit(callable_model, pairs)
    assert history.steps[-1]["temperature"] == callable_model.logit_scale.temperature.item() != pytest.approx(0.07)


def test_learning_rate_rises_then_falls_to_its_end(callable_model, pairs):
    history = fit(
        callable_model, pairs, epochs=20, batch_size=12, learning_rate=1e-3, final_learning_rate=1e-5, warmup=0.25
    )
    rates = [row["learning_rate"] for row in history.steps]
    peak = int(np.argmax(rates))
    assert peak == 5
    assert rates[peak] == pytest.approx(1e-3)
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 1e-5 <= rates[-1] < 3e-5


def test_evaluator_is_called_with_model_path_epoch_and_steps(callable_model, pairs):
    calls = []

    def evaluator(model, output_path=None, epoch=-1, steps=-1):
        calls.append((model is callable_model, model.training, output_path, epoch, steps))
        return {"score": epoch / 10}

    history = fit(callable_model, pairs, evaluator, epochs=3, batch_size=4)
    assert calls == [(True, False, None, epoch, 3 * epoch) for epoch in (1, 2, 3)]
    assert history.evaluations == [{"step": 3 * e, "epoch": e, "score": e / 10} for e in (1, 2, 3)]


def test_evaluator_is_called_as_often_as_asked_and_at_the_end(callable_model, pairs):
    epochs = []
    fit(
        callable_model,
        pairs,
        lambda model, output_path, epoch, steps: epochs.append(epoch) or 1.0,
        epochs=5,
        evaluate_every=6,
    )
    assert epochs == [2, 4, 5]


def test_evaluator_may_return_a_number(callable_model, pairs):
    history = fit(callable_model, pairs, lambda model, output_path, epoch, steps: 0.25, epochs=1)
    assert history.evaluations == [{"step": 3, "epoch": 1, "score": 0.25}]


def test_training_goes_on_after_an_evaluation(callable_model, pairs):
    """An evaluator puts the model to sleep; the next epoch must drop out again."""
    other = copy.deepcopy(callable_model)
    evaluated = fit(callable_model, pairs, lambda model, **_: 0.0, epochs=3)
    assert fit(other, pairs, epochs=3).losses == evaluated.losses


def test_our_evaluator_sees_the_model_improve(callable_model, patterns):
    evaluator = RetrievalEvaluator(*patterns, name="train", show_progress_bar=False)
    before = evaluator(callable_model)["train_t2i_R@1"]
    options = {"epochs": 80, "batch_size": 12, "learning_rate": 5e-3, "evaluate_every": 1000}
    history = fit(callable_model, list(zip(*patterns)), evaluator, **options)
    assert history.evaluations[-1]["train_t2i_R@1"] == 1 > before


# The temperature and the optimiser


@pytest.mark.parametrize("learning_rate", [1.0, 0.05])
def test_temperature_stays_within_its_bounds(callable_model, pairs, learning_rate):
    callable_model.logit_scale = LogitScale(0.07, 0.06, 0.08)
    history = fit(callable_model, pairs, epochs=10, learning_rate=learning_rate)
    temperatures = [row["temperature"] for row in history.steps]
    assert all(0.06 - 1e-7 <= temperature <= 0.08 + 1e-7 for temperature in temperatures)
    assert len({round(t, 7) for t in temperatures} & {0.06, 0.08}) >= 1


def test_weight_decay_leaves_norms_biases_and_temperature_alone(model):
    groups = make_optimizer(trained_parameters(model).values(), FitArguments(weight_decay=0.02)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    names = {name: decay[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    norms = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, torch.nn.LayerNorm)
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    spared = {name for name, value in names.items() if value == 0}
    assert spared == norms | {name for name in names if name.endswith("bias")} | {"logit_scale.temperature"}
    assert set(names.values()) == {0.0, 0.02}


def test_optimizer_holds_all_that_is_trainable_and_nothing_frozen(model):
    groups = make_optimizer(trained_parameters(model).values(), FitArguments()).param_groups
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_weight_decay_shrinks_matrices(callable_model, pairs):
    other = copy.deepcopy(callable_model)
    fit(callable_model, pairs, learning_rate=1e-2, weight_decay=0.0)
    fit(other, pairs, learning_rate=1e-2, weight_decay=5.0)
    size = lambda model: sum(p.square().sum() for p in model.parameters() if p.requires_grad and p.ndim == 2)  # noqa: E731
    assert size(other) < 0.9 * size(callable_model)


# Errors


def test_unknown_option_is_a_type_error(callable_model, pairs):
    with pytest.raises(TypeError, match="learning_rat"):
        callable_model.fit(pairs, learning_rat=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"batch_size": 1}, "a pair alone has no negatives"),
        ({"warmup": 1.0}, r"warmup is a share.*got 1\.0"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1"),
    ],
)
def test_impossible_option_is_named_with_its_value(callable_model, pairs, options, message):
    with pytest.raises(ValueError, match=message):
        callable_model.fit(pairs, **options)


def test_options_are_put_on_top_of_arguments(callable_model, pairs):
    arguments = FitArguments(epochs=3, batch_size=6, show_progress_bar=False)
    assert len(callable_model.fit(pairs, arguments=arguments, epochs=1).steps) == 2


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pairs_are_refused(callable_model, pairs, cache, count):
    message = "at least 2 pairs, got 1" if count else "at least 2 pairs, got 0|no pair that can be read"
    with pytest.raises(ValueError, match=message):
        fit(callable_model, pairs[:count], cache_features=cache)


def test_loader_with_one_pair_is_refused(callable_model, pairs):
    loader = DataLoader(pairs[:1], batch_size=1, collate_fn=collate)
    with pytest.raises(ValueError, match="at least 2"):
        callable_model.fit(loader, epochs=1, **QUIET)


def test_uncached_loader_of_single_pairs_is_refused(callable_model, pairs):
    loader = DataLoader(pairs, batch_size=1, collate_fn=collate)
    with pytest.raises(ValueError, match="negatives"):
        callable_model.fit(loader, epochs=1, cache_features=False, **QUIET)


def test_loss_that_is_not_finite_names_its_step(callable_model, pairs):
    with pytest.raises(FloatingPointError, match=r"nan at step 2\..*learning_rate"):
        fit(callable_model, pairs, epochs=3, learning_rate=1e30, warmup=0.0)


def test_failed_fit_leaves_the_model_ready_to_encode(callable_model, pairs):
    with pytest.raises(FloatingPointError):
        fit(callable_model, pairs, learning_rate=1e30, warmup=0.0)
    assert not callable_model.training


def test_model_with_nothing_to_train_is_refused(images, texts):
    def tower(modality):
        return [FrozenEncoder(constant, modality), TokenProjector(4, 4, kind="identity"), Pooling("mean")]

    model = FreezeAlign({"image": tower("image"), "text": tower("text")}, device="cpu")
    with pytest.raises(ValueError, match="nothing to train"):
        fit(model, list(zip(images, texts)))


def test_model_of_one_tower_is_refused(bert_folder, texts):
    model = FreezeAlign([bert_folder], dim=8, device="cpu")
    with pytest.raises(ValueError, match=r"two towers.*\['text'\]"):
        fit(model, [{"text": text} for text in texts])


def test_data_is_not_read_if_the_model_cannot_be_trained(bert_folder):
    model = FreezeAlign([bert_folder], dim=8, device="cpu")

    def never():
        pytest.fail("the data was read")
        yield

    with pytest.raises(ValueError, match="two towers"):
        fit(model, never())


def test_uncached_loader_that_groups_single_pairs_is_refused(callable_model, pairs):
    loader = DataLoader(pairs, batch_sampler=[[i] for i in range(12)], collate_fn=collate)
    with pytest.raises(ValueError, match=r"negatives|no pair"):
        callable_model.fit(loader, epochs=1, cache_features=False, **QUIET)
