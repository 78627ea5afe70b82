from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import layer_norm, normalize

from freezealign import FreezeAlign, FrozenEncoder, Pooling, ProjectionHead, RetrievalEvaluator, TokenProjector
from freezealign.moments import PAIR, Moments
from freezealign.training.correlation import (
    SHRINKAGES,
    choose_shrinkage,
    correlated_directions,
    total,
    whitening,
)

QUIET = {"init": "closed-form", "epochs": 0, "show_progress_bar": False}


def pair_of_views(n: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two noisy linear views, 10 and 7 wide, of the same 4 hidden causes."""
    rng = torch.Generator().manual_seed(seed)
    causes = torch.randn(n, 4, generator=rng, dtype=torch.float64)
    x = causes @ torch.randn(4, 10, generator=rng, dtype=torch.float64) + 0.1 * torch.randn(n, 10, generator=rng)
    y = causes @ torch.randn(4, 7, generator=rng, dtype=torch.float64) + 0.1 * torch.randn(n, 7, generator=rng)
    return x + 3, y - 1


def moments_of(x: torch.Tensor, y: torch.Tensor, *ends: int) -> Moments:
    moments = Moments(double=True)
    for start, end in zip((0, *ends), (*ends, len(x))):
        moments.update((x[start:end], y[start:end]))
    return moments


def covariances(moments: Moments) -> list[torch.Tensor]:
    """Of x, of x with y, and of y."""
    return [moments.covariance(*block) for block in PAIR]


@given(st.lists(st.integers(0, 200), max_size=5).map(sorted))
def test_moments_do_not_depend_on_the_split_into_batches(ends):
    x, y = pair_of_views()
    for split, whole in zip(covariances(moments_of(x, y, *ends)), covariances(moments_of(x, y))):
        torch.testing.assert_close(split, whole)


def test_covariances_are_those_of_numpy():
    x, y = pair_of_views()
    expected = np.cov(torch.cat([x, y], 1).T, bias=True)
    xx, xy, yy = covariances(moments_of(x, y))
    np.testing.assert_allclose(torch.cat([torch.cat([xx, xy], 1), torch.cat([xy.T, yy], 1)]), expected, atol=1e-10)


def test_whitener_whitens():
    xx, _, _ = covariances(moments_of(*pair_of_views()))
    variances, directions = torch.linalg.eigh(xx)
    whitener = directions * whitening(variances, 0.0)
    torch.testing.assert_close(whitener.T @ xx @ whitener, torch.eye(10, dtype=torch.float64), atol=1e-8, rtol=0)


@pytest.mark.parametrize("swap", [False, True])
def test_directions_are_those_of_the_singular_value_decomposition(swap):
    """The definition, written out with matrix roots, for x wider than y and the reverse."""
    moments = moments_of(*(reversed(pair_of_views()) if swap else pair_of_views()))
    xx, xy, yy = covariances(moments)

    def root(matrix: torch.Tensor, ridge: float) -> torch.Tensor:
        ridged = matrix + ridge * matrix.trace() * torch.eye(len(matrix), dtype=torch.float64)
        return torch.linalg.inv(torch.from_numpy(scipy.linalg.sqrtm(ridged.numpy()).real))

    left, correlations, right = torch.linalg.svd(root(xx, 0.02) @ xy @ root(yy, 0.05), full_matrices=False)
    expected = (correlations[:, None] * left.T @ root(xx, 0.02)).T @ (correlations[:, None] * right @ root(yy, 0.05))
    [first], [second] = correlated_directions(moments, 10, (0.02, 0.05))
    torch.testing.assert_close(first.weight.T @ second.weight, expected, atol=1e-8, rtol=0)


def test_without_shrinkage_directions_have_their_canonical_correlation():
    x, y = pair_of_views()
    [first], [second] = correlated_directions(moments_of(x, y), 4, (1e-9, 1e-9))
    a, b = x @ first.weight.T + first.bias, y @ second.weight.T + second.bias
    correlations = [float(np.corrcoef(a[:, i], b[:, i])[0, 1]) for i in range(4)]
    assert min(correlations) > 0.95
    # Each direction is scaled by its correlation, so its standard deviation is the correlation itself.
    np.testing.assert_allclose(a.std(0, correction=0), correlations, atol=1e-3)
    torch.testing.assert_close(a.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-8, rtol=0)


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_closed_form_does_not_change_under_rotation_of_the_encoder(seed):
    x, y = pair_of_views()
    rotation = torch.linalg.qr(
        torch.randn(10, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).Q

    def similarities(x: torch.Tensor) -> torch.Tensor:
        [first], [second] = correlated_directions(moments_of(x, y), 5, (0.06, 0.08))
        return (x @ first.weight.T + first.bias) @ (y @ second.weight.T + second.bias).T

    torch.testing.assert_close(similarities(x), similarities(x @ rotation), atol=1e-6, rtol=1e-6)


def views_of_token_store(store) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return CLS and the mean patch of each image, and the mean token of each text, layer-normed as the blocks do."""
    image, text = store["image"].load(range(12)), store["text"].load(range(12))
    mask = text["attention_mask"].unsqueeze(-1)
    words = (layer_norm(text["token_embeddings"], (20,)) * mask).sum(1) / mask.sum(1)
    patches = layer_norm(image["token_embeddings"], (24,)).mean(1)
    return [layer_norm(image["cls_token_embeddings"], (24,)).double(), patches.double()], words.double()


def test_the_token_model_computes_the_closed_form_exactly(model, pairs, images, texts):
    """By definition: x is CLS and the mean patch side by side, whose covariance with each other is left out."""
    model.fit(pairs, **QUIET)
    (cls, patches), words = views_of_token_store(model.extract_features(pairs, show_progress_bar=False))
    x, y = (view - view.mean(0) for view in (torch.cat([cls, patches], 1), words))
    apart = torch.block_diag(torch.ones(24, 24), torch.ones(24, 24))
    blocks, views = [(i, j) for i in range(3) for j in range(i, 3)], ((0, 1), (2,))
    folds = [Moments(blocks, double=True) for _ in range(5)]
    for number, fold in enumerate(folds):
        fold.update([view[number::5] for view in (cls, patches, words)])
    shrinkage = choose_shrinkage(folds, views)

    def root(covariance: torch.Tensor, width: int) -> torch.Tensor:
        ridge = [block.mean().repeat(width) for block in covariance.diagonal().split(width)]
        values, vectors = torch.linalg.eigh(covariance + shrinkage * torch.diag(torch.cat(ridge)))
        return vectors @ torch.diag(values.rsqrt()) @ vectors.T

    left, right = root(apart * (x.T @ x) / 12, 24), root(y.T @ y / 12, 20)
    u, s, v = torch.linalg.svd(left @ (x.T @ y / 12) @ right, full_matrices=False)
    a, b = x @ left @ u[:, :15] * s[:15], y @ right @ v[:15].T * s[:15]
    similarity = model.similarity(model.encode(images), model.encode(texts))
    torch.testing.assert_close(similarity.double(), normalize(a) @ normalize(b).T, atol=1e-4, rtol=0)


def test_the_patches_of_a_token_model_lie_near_their_caption_without_cls(model, pairs, images, texts):
    model.fit(pairs, **QUIET)
    means = torch.stack([patches.mean(0) for patches, _ in model.encode_tokens(images, convert_to_tensor=True)])
    similarity = normalize(means) @ torch.from_numpy(model.encode(texts)).T
    assert (similarity.argmax(1) == torch.arange(12)).float().mean() > 0.5


def test_closed_form_finds_training_pairs_again(callable_model, pairs, images, texts):
    callable_model.fit(pairs, **QUIET)
    scores = RetrievalEvaluator(images, texts, show_progress_bar=False)(callable_model)
    assert scores["t2i_R@1"] > 0.5 > 3 * scores["t2i_R@1_chance"]


def test_zero_epochs_take_no_step_but_evaluate(callable_model, pairs):
    calls = []
    history = callable_model.fit(pairs, evaluator=lambda model, **where: calls.append(where) or {"score": 1.0}, **QUIET)
    assert history.steps == [] and history.evaluations == [{"step": 0, "epoch": 0, "score": 1.0}]
    assert calls == [{"output_path": None, "epoch": 0, "steps": 0}]


def test_training_goes_on_from_the_closed_form(callable_model, pairs):
    cold = callable_model.fit(pairs, init="random", epochs=1, show_progress_bar=False).losses[0]
    warm = callable_model.fit(pairs, init="closed-form", epochs=1, show_progress_bar=False).losses[0]
    assert warm < cold


def test_one_of_several_captions_is_chosen_by_seed(callable_model, images, texts):
    many = [(image, [text, f"{text} again and again"]) for image, text in zip(images, texts)]
    callable_model.fit(many, seed=1, **QUIET)
    first = callable_model.encode(images)
    callable_model.fit(many, seed=1, **QUIET)
    np.testing.assert_array_equal(callable_model.encode(images), first)
    callable_model.fit(many, seed=2, **QUIET)
    assert not np.allclose(callable_model.encode(images), first)


def similarities_of(model, images, texts) -> torch.Tensor:
    return model.similarity(model.encode(images), model.encode(texts))


def test_linear_and_gated_heads_start_from_the_same_map(dinov2_folder, bert_folder, pairs, images, texts):
    """Of one pooled vector an item every recipe has the same closed form, but for the layer norm of its input."""
    found = {}
    for recipe in ("pooled", "glu"):
        model = FreezeAlign([dinov2_folder, bert_folder], recipe=recipe, dim=16, device="cpu")
        model.fit(pairs, **QUIET)
        found[recipe] = similarities_of(model, images, texts)
    torch.testing.assert_close(found["pooled"], found["glu"], atol=1e-5, rtol=0)


def test_linear_recipe_computes_the_closed_form_of_the_pooled_vectors(dinov2_folder, bert_folder, pairs, images, texts):
    model = FreezeAlign([dinov2_folder, bert_folder], recipe="linear", dim=16, device="cpu")
    model.fit(pairs, **QUIET)
    store = model.extract_features(pairs, show_progress_bar=False)
    x, y = (store[name].load(range(12))["sentence_embedding"].double() for name in ("image", "text"))
    shrinkage = choose_shrinkage([moments_of(x[fold::5], y[fold::5]) for fold in range(5)])
    [first], [second] = correlated_directions(moments_of(x, y), 15, (shrinkage / 24, shrinkage / 20))
    expected = normalize(x @ first.weight.T + first.bias, dim=-1) @ normalize(y @ second.weight.T + second.bias).T
    torch.testing.assert_close(similarities_of(model, images, texts).double(), expected, atol=1e-4, rtol=0)


OTHER = {
    "mlp": (lambda: [TokenProjector(24, 16, kind="mlp", cls=True), Pooling("cls+patch_mean")], "kind='mlp'"),
    "max": (lambda: [TokenProjector(24, 16), Pooling("max")], "maximum over tokens"),
    "two heads": (lambda: [Pooling("cls"), ProjectionHead(24, 16), ProjectionHead(16, 16)], "no linear way through"),
    "wide head": (lambda: [TokenProjector(24, 20), Pooling("mean"), ProjectionHead(20, 16)], "unchanged"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_other_blocks_are_refused_before_any_data_is_read(dinov2_folder, bert_folder, kind):
    blocks, reason = OTHER[kind]
    image = [FrozenEncoder(dinov2_folder), *blocks()]
    model = FreezeAlign({"image": image, "text": bert_folder}, dim=16, device="cpu")

    def never():
        pytest.fail("the data was read")
        yield

    with pytest.raises(ValueError, match=f"closed-form.*{reason}"):
        model.fit(never(), **QUIET)


def test_other_blocks_are_trained_from_where_they_are_by_default(dinov2_folder, bert_folder, pairs):
    image = [FrozenEncoder(dinov2_folder), TokenProjector(24, 16, kind="mlp", cls=True), Pooling("cls+patch_mean")]
    model = FreezeAlign({"image": image, "text": bert_folder}, dim=16, device="cpu")
    history = model.fit(pairs, epochs=1, show_progress_bar=False)
    assert "no linear branch" in history.plan and len(history.steps) == 1


def test_fewer_pairs_ask_for_more_shrinkage():
    """What the views share is small beside what they do not: only many pairs can tell which directions to blow up."""
    rng = torch.Generator().manual_seed(0)

    def draw(n: int) -> list[Moments]:
        cause, spread = torch.randn(n, 3, generator=rng), torch.linspace(0.1, 2, 60)
        shared = [0.3 * cause + 0.1 * torch.randn(n, 3, generator=rng) for _ in range(2)]
        views = [torch.cat([part, spread * torch.randn(n, 60, generator=rng)], 1) for part in shared]
        return [moments_of(views[0][fold::5], views[1][fold::5]) for fold in range(5)]

    assert choose_shrinkage(draw(40)) > choose_shrinkage(draw(20_000)) == SHRINKAGES[0]


def test_moments_of_parts_add_up():
    x, y = pair_of_views()
    merged = total([moments_of(x[:50], y[:50]), moments_of(x[50:], y[50:])])
    for split, whole in zip(covariances(merged), covariances(moments_of(x, y))):
        torch.testing.assert_close(split, whole)


def test_weight_counts_a_pair_as_often():
    x, y = pair_of_views(20)
    weighted = moments_of(x, y)
    weighted.update((x[:5], y[:5]), weight=2.0)
    repeated = moments_of(torch.cat([x, x[:5], x[:5]]), torch.cat([y, y[:5], y[:5]]))
    for place in (0, 1):
        torch.testing.assert_close(weighted.mean(place), repeated.mean(place))
    torch.testing.assert_close(weighted.covariance(0, 1), repeated.covariance(0, 1))


def test_closed_form_draws_nothing_from_the_global_generator(callable_model, pairs):
    before = torch.random.get_rng_state()
    callable_model.fit(pairs, **QUIET)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_closed_form_without_cached_features_is_refused(callable_model, pairs):
    with pytest.raises(ValueError, match="cache_features=True"):
        callable_model.fit(pairs, cache_features=False, **QUIET)
