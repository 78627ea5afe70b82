"""Ranks and intervals: worked by hand, and against clip-benchmark."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freezealign.evaluation import metrics
from freezealign.evaluation.metrics import bootstrap_interval, positive_ranks, scored, two_way_ranks


def ranks(scores: list[list[float]], queries: list[int], gallery: list[int]) -> list[int]:
    """Ranks for a given matrix of scores (Q, G): with an identity as gallery, the queries are the scores."""
    matrix = torch.tensor(scores, dtype=torch.float32)
    return positive_ranks(matrix, torch.eye(matrix.shape[1]), torch.tensor(queries), torch.tensor(gallery)).tolist()


def unit(generator: np.random.Generator, rows: int, width: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(generator.normal(size=(rows, width))).float(), dim=-1)


def brute_force(queries, gallery, query_owner, gallery_owner) -> list[int]:
    """The definition, one query at a time."""
    found = []
    for vector, owner in zip(queries, query_owner):
        scores = [float(vector @ other) for other in gallery]
        best = max(score for score, other in zip(scores, gallery_owner) if other == owner)
        found.append(sum(score >= best for score, other in zip(scores, gallery_owner) if other != owner))
    return found


# By hand


def test_right_item_first():
    assert ranks([[0.9, 0.1, 0.3]], [0], [0, 1, 2]) == [0]


def test_right_item_last():
    assert ranks([[0.9, 0.1, 0.3]], [1], [0, 1, 2]) == [2]


def test_each_query_has_its_own_right_item():
    assert ranks([[0.1, 0.9, 0.3], [0.9, 0.8, 0.7], [0.5, 0.4, 0.6]], [0, 1, 2], [0, 1, 2]) == [2, 1, 0]


def test_best_of_several_right_items_counts():
    assert ranks([[0.1, 0.8, 0.9, 0.7]], [5], [5, 5, 3, 3]) == [1]


def test_right_items_do_not_count_against_each_other():
    assert ranks([[0.9, 0.8, 0.7, 0.1]], [5], [5, 5, 5, 3]) == [0]


def test_tie_with_a_wrong_item_counts_against_the_model():
    assert ranks([[0.5, 0.5, 0.2]], [0], [0, 1, 2]) == [1]


def test_tie_among_right_items_does_not():
    assert ranks([[0.5, 0.5, 0.2]], [0], [0, 0, 2]) == [0]


def test_everything_tied_ranks_behind_every_wrong_item():
    assert ranks([[0.5, 0.5, 0.5, 0.5]], [0], [0, 0, 1, 2]) == [2]


def test_owners_may_be_any_numbers_in_any_order():
    assert ranks([[0.2, 0.9, 0.4]], [70], [900, 3, 70]) == [1]


def test_no_queries_have_no_ranks():
    assert positive_ranks(torch.empty(0, 3), torch.eye(3), torch.empty(0), torch.arange(3)).tolist() == []


def test_scores_that_are_not_a_number_are_never_hits():
    """A model that gives NaN must not look perfect."""
    assert ranks([[float("nan")] * 3, [0.1, float("nan"), 0.3]], [0, 1], [0, 1, 2]) == [2, 2]


# Against the definition, and against clip-benchmark


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 8), extra=st.integers(0, 8), width=st.integers(1, 4), seed=st.integers(0, 999))
def test_ranks_equal_the_definition(n, extra, width, seed):
    generator = np.random.default_rng(seed)
    # Small integers, so that dot products are exact and ties are common.
    gallery = torch.from_numpy(generator.integers(-2, 3, (n + extra, width))).float()
    queries = torch.from_numpy(generator.integers(-2, 3, (5, width))).float()
    gallery_owner = torch.from_numpy(np.concatenate([np.arange(n), generator.integers(0, n, extra)]))
    query_owner = torch.from_numpy(generator.integers(0, n, 5))
    found = positive_ranks(queries, gallery, query_owner, gallery_owner).tolist()
    assert found == brute_force(queries, gallery, query_owner.tolist(), gallery_owner.tolist())


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_equals_clip_benchmark(k):
    """Their positives are a matrix and their recall a share of positives found; more than none is a hit."""
    oracle = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    generator = np.random.default_rng(k)
    images, texts = unit(generator, 40, 16), unit(generator, 200, 16)
    owner = torch.from_numpy(np.repeat(np.arange(40), 5))
    scores = texts @ images.T
    positive = torch.zeros(200, 40, dtype=torch.bool)
    positive[torch.arange(200), owner] = True
    theirs_t2i = oracle.batchify(oracle.recall_at_k, scores, positive, 32, "cpu", k=k) > 0
    theirs_i2t = oracle.batchify(oracle.recall_at_k, scores.T, positive.T, 32, "cpu", k=k) > 0
    t2i, i2t = two_way_ranks(images, texts, owner)
    assert torch.equal(t2i < k, theirs_t2i)
    assert torch.equal(i2t < k, theirs_i2t)


@pytest.mark.parametrize("elements", [1, 37, 100, 10**9])
def test_tiling_does_not_change_ranks(monkeypatch, elements):
    generator = np.random.default_rng(0)
    gallery, queries = unit(generator, 31, 8), unit(generator, 53, 8)
    owners = torch.from_numpy(generator.integers(0, 31, 53))
    expected = brute_force(queries, gallery, owners.tolist(), list(range(31)))
    monkeypatch.setattr(metrics, "TILE_ELEMENTS", elements)
    assert positive_ranks(queries, gallery, owners, torch.arange(31)).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=12), tile=st.integers(1, 200), seed=st.integers(0, 999))
def test_both_ways_at_once_equal_the_definition(counts, tile, seed):
    generator = np.random.default_rng(seed)
    owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    # Small integers, so that dot products are exact and ties are common.
    images = torch.from_numpy(generator.integers(-2, 3, (len(counts), 3))).float()
    texts = torch.from_numpy(generator.integers(-2, 3, (len(owners), 3))).float()
    with mock.patch.object(metrics, "TILE_ELEMENTS", tile):
        t2i, i2t = two_way_ranks(images, texts, owners)
    own = list(range(len(counts)))
    assert t2i.tolist() == brute_force(texts, images, owners.tolist(), own)
    assert i2t.tolist() == brute_force(images, texts, own, owners.tolist())


@pytest.mark.parametrize("tile", [1, 60, 10**6])
def test_both_ways_at_once_a_score_that_is_not_a_number_ranks_last(monkeypatch, tile):
    monkeypatch.setattr(metrics, "TILE_ELEMENTS", tile)
    images, texts = torch.eye(4), torch.eye(4)
    texts[1] = float("nan")
    t2i, i2t = two_way_ranks(images, texts, torch.arange(4))
    assert t2i.tolist() == [0, 3, 0, 0]
    assert i2t.tolist() == [1, 3, 1, 1]


@pytest.mark.parametrize("width", [1, 3, 16, 37, 257])
def test_constant_embeddings_rank_last(width):
    generator = np.random.default_rng(width)
    queries, gallery = unit(generator, 1, width).repeat(67, 1), unit(generator, 1, width).repeat(67, 1)
    assert set(positive_ranks(queries, gallery, torch.arange(67), torch.arange(67)).tolist()) == {66}


@pytest.mark.parametrize("width", [1, 3, 16, 37, 257])
def test_constant_embeddings_rank_last_both_ways(monkeypatch, width):
    monkeypatch.setattr(metrics, "TILE_ELEMENTS", 400)
    generator = np.random.default_rng(width)
    images, texts = unit(generator, 1, width).repeat(67, 1), unit(generator, 1, width).repeat(134, 1)
    t2i, i2t = two_way_ranks(images, texts, torch.arange(67).repeat_interleave(2))
    assert set(t2i.tolist()) == {66}
    assert set(i2t.tolist()) == {132}


# Intervals


def test_interval_is_around_the_mean():
    values = np.array([0.0, 1.0] * 50)
    low, high = bootstrap_interval(values)
    assert 0.35 < low < 0.45
    assert 0.55 < high < 0.65


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(150):
        low, high = bootstrap_interval(generator.random(80) < 0.3, level=0.9, resamples=200)
        covered.append(low <= 0.3 <= high)
    assert 0.8 < np.mean(covered) < 0.97


def test_interval_shrinks_with_more_items():
    generator = np.random.default_rng(0)
    widths = [np.subtract(*bootstrap_interval(generator.random(n) < 0.5)[::-1]) for n in (50, 5000)]
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.3)


def test_interval_is_the_same_each_time():
    values = np.random.default_rng(0).random(30)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_interval_of_equal_values_is_a_point():
    assert bootstrap_interval(np.ones(20)) == (1.0, 1.0)


def test_interval_of_a_single_value_is_that_value():
    assert bootstrap_interval(np.array([1.0])) == (1.0, 1.0)


def test_score_comes_with_its_interval_and_chance():
    scores = scored("top1", np.array([True, False, True, True]), chance=0.25)
    assert scores["top1"] == 0.75
    assert scores["top1_chance"] == 0.25
    assert scores["top1_low"] <= 0.75 <= scores["top1_high"]
