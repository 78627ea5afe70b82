"""The best rows of each concept: those that sorting everything finds, whatever the order in which rows come."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freezealign.curation.top_k import MOST_ROWS, NOTHING, TopK, as_keys, find, rows_of, scores_of

FLOATS = st.floats(width=32, allow_nan=False)


def brute_force(scores: np.ndarray, k: int) -> list[list[int]]:
    """The K best columns of each row; equal scores by the lower column, NaN never."""
    return [
        sorted(np.flatnonzero(~np.isnan(row)).tolist(), key=lambda column, row=row: (-row[column], column))[:k]
        for row in scores
    ]


def found(keys: np.ndarray) -> list[list[int]]:
    return [rows_of(own[own != NOTHING]).tolist() for own in keys]


@given(st.lists(FLOATS, min_size=1), st.integers(0, MOST_ROWS - 1))
def test_key_holds_score_and_row(scores, row):
    scores = np.array(scores, np.float32)
    keys = as_keys(scores, np.full(len(scores), row))
    assert (rows_of(keys) == row).all()
    np.testing.assert_array_equal(scores_of(keys), scores)
    assert (keys != NOTHING).all()


@given(st.lists(st.tuples(FLOATS, st.integers(0, MOST_ROWS - 1)), min_size=2))
def test_order_of_keys_is_that_of_scores_then_of_rows(pairs):
    scores, rows = np.array([s for s, _ in pairs], np.float32), np.array([r for _, r in pairs])
    keys = as_keys(scores, rows)
    expected = sorted(range(len(pairs)), key=lambda i: (-scores[i], rows[i]))
    assert [(-scores[i], rows[i]) for i in np.argsort(keys)[::-1]] == [(-scores[i], rows[i]) for i in expected]


def test_scores_at_the_edges_do_not_wrap():
    edges = np.array(
        [-np.inf, -3.4028235e38, -1, -1e-45, -0.0, 0, 1e-45, 1, 1.0000001, 3.4028235e38, np.inf], np.float32
    )
    keys = as_keys(edges, np.zeros(len(edges), np.int64))
    assert (np.diff(keys.astype(object)) >= 0).all()
    assert keys[4] == keys[5]
    assert len(set(keys.tolist())) == len(edges) - 1


SCORES = st.tuples(st.integers(1, 4), st.integers(1, 60), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3]))


def make_scores(shape) -> np.ndarray:
    """Scores with many ties, some of them NaN."""
    concepts, rows, seed, missing = shape
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, (concepts, rows)).astype(np.float32)
    scores[:, rng.random(rows) < missing] = np.nan
    return scores


@given(SCORES, st.integers(1, 8), st.integers(1, 20))
def test_best_are_those_of_sorting_everything(shape, k, tile):
    scores, top = make_scores(shape), TopK(shape[0], k)
    for start in range(0, shape[1], tile):
        top.update(torch.from_numpy(scores[:, start : start + tile]), start)
    assert found(top.sorted()) == brute_force(scores, k)


@given(SCORES, st.integers(1, 8), st.permutations(range(5)))
def test_parts_may_be_merged_in_any_order(shape, k, order):
    scores, keys = make_scores(shape), []
    bounds = np.linspace(0, shape[1], 6).astype(int)
    for start, stop in pairwise(bounds):
        part = TopK(shape[0], k)
        part.update(torch.from_numpy(scores[:, start:stop]), int(start))
        keys.append(part.sorted())
    whole = TopK(shape[0], k)
    for number in order:
        whole.merge(keys[number])
    assert found(whole.sorted()) == brute_force(scores, k)


@given(SCORES, st.integers(1, 8), st.integers(1, 20))
def test_looking_in_the_middle_changes_nothing(shape, k, tile):
    scores, top = make_scores(shape), TopK(shape[0], k)
    for start in range(0, shape[1], tile):
        top.update(torch.from_numpy(scores[:, start : start + tile]), start)
        assert found(top.sorted()) == brute_force(scores[:, : start + tile], k)


def test_rows_beyond_the_key_are_refused():
    with pytest.raises(ValueError, match="at most 4,294,967,295 rows"):
        TopK(1, 1).update(torch.zeros(1, 2), MOST_ROWS - 1)


@pytest.mark.parametrize(("concepts", "k"), [(0, 1), (1, 0)])
def test_there_is_a_concept_and_a_row(concepts, k):
    with pytest.raises(ValueError, match="at least one concept"):
        TopK(concepts, k)


@given(st.sets(st.integers(0, 30)), st.lists(st.integers(0, 30)))
def test_rows_are_found_where_they_stand(rows, wanted):
    rows = np.array(sorted(rows), np.int64)
    places, there = find(rows, np.array(wanted, np.int64))
    assert there.tolist() == [row in rows for row in wanted]
    assert rows[places[there]].tolist() == [row for row in wanted if row in rows]


@pytest.mark.gpu
def test_scores_may_be_on_an_accelerator():
    scores, top = torch.from_numpy(make_scores((3, 60, 7, 0.3))), TopK(3, 5)
    top.update(scores.cuda(), 0)
    assert found(top.sorted()) == brute_force(scores.numpy(), 5)
