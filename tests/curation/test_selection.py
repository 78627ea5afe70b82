"""Balanced selection: rarest first, quotas, every row once; and the weights of a mixture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freezealign.curation import mixing_weights, select_balanced
from freezealign.curation.selection import candidate_rows, rarest_first
from freezealign.curation.top_k import TopK, rows_of


def make_keys(concepts: int, rows: int, k: int, seed: int = 0, levels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Keys of scores with many ties, and the scores (C, n)."""
    scores = np.random.default_rng(seed).integers(0, levels, (concepts, rows)).astype(np.float32)
    top = TopK(concepts, k)
    top.update(torch.from_numpy(scores), 0)
    return top.sorted(), scores


def reference(scores: np.ndarray, k: int, quota: int, allowed: set[int]) -> list[tuple[int, int]]:
    """(concept, row) of the selection, by sorting everything."""
    lists = [sorted(range(scores.shape[1]), key=lambda row, own=own: (-own[row], row))[:k] for own in scores]
    order = sorted(range(len(scores)), key=lambda c: scores[c][lists[c][:quota][-1]])
    taken, chosen = set(), []
    for concept in order:
        own = [row for row in lists[concept] if row in allowed and row not in taken][:quota]
        taken.update(own)
        chosen += [(concept, row) for row in own]
    return chosen


SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))


@given(SHAPES, st.integers(1, 6), st.sets(st.integers(0, 39)))
def test_selection_is_that_of_sorting_everything(shape, quota, allowed):
    keys, scores = make_keys(*shape)
    rows = np.intersect1d(candidate_rows(keys), sorted(allowed)).astype(np.int64)
    found = select_balanced(keys, quota, rows)
    expected = reference(scores, shape[2], quota, allowed)
    assert list(zip(found.concepts.tolist(), found.rows.tolist())) == expected
    assert found.scores.tolist() == [scores[concept, row] for concept, row in expected]


@given(SHAPES, st.integers(1, 6))
def test_no_row_twice_and_no_quota_exceeded(shape, quota):
    found = select_balanced(make_keys(*shape)[0], quota)
    assert len(set(found.rows.tolist())) == len(found)
    assert found.counts(shape[0]).max() <= quota
    assert len(found.counts(shape[0])) == shape[0]


def test_rarest_concept_takes_what_a_common_one_wants_too():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.9, 0.1, 0.0, 0.0]])
    top = TopK(2, 3)
    top.update(scores, 0)
    keys = top.sorted()
    assert rarest_first(keys, 2).tolist() == [1, 0]
    found = select_balanced(keys, 2)
    assert list(zip(found.concepts.tolist(), found.rows.tolist())) == [(1, 0), (1, 1), (0, 2)]


@pytest.mark.parametrize("k", [2, 3, 100])
def test_rarity_does_not_depend_on_how_many_candidates_are_kept(k):
    top = TopK(3, k)
    top.update(torch.tensor([[0.9, 0.8, 0.0], [0.9, 0.3, 0.1], [0.5, 0.4, 0.2]]), 0)
    assert rarest_first(top.sorted(), 2).tolist() == [1, 2, 0]


def test_concept_with_fewer_candidates_counts_by_its_last():
    top = TopK(2, 4)
    top.update(torch.tensor([[0.1, float("nan")], [0.3, 0.05]]), 0)
    assert rarest_first(top.sorted(), 3).tolist() == [1, 0]


def test_candidates_are_all_rows_of_all_lists():
    keys, _ = make_keys(4, 30, 5)
    assert candidate_rows(keys).tolist() == sorted(set(rows_of(keys).ravel().tolist()))


def test_quota_is_positive():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        select_balanced(make_keys(1, 1, 1)[0], 0)


def test_weights_lead_from_the_sizes_to_equal_shares():
    sizes = {"web": 15_000_000, "curated": 6_000_000}
    assert mixing_weights(sizes) == {"web": 1, "curated": 1}
    equal = mixing_weights(sizes, math.inf)
    assert equal == {"web": pytest.approx(0.4), "curated": 1}
    between = mixing_weights(sizes, 2)
    assert between["web"] * 15 / 6 == pytest.approx(math.sqrt(15 / 6))


@pytest.mark.parametrize(("sizes", "temperature"), [({"a": 0}, 1), ({}, 1), ({"a": 1}, 0.5), ({"a": 1}, math.nan)])
def test_mixture_of_nothing_is_refused(sizes, temperature):
    with pytest.raises(ValueError, match="the temperature is at least 1"):
        mixing_weights(sizes, temperature)
