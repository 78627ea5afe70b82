"""Order: every pair its turn, by seed and epoch alone, in memory that does not grow with the data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezealign.training import order as module
from freezealign.training.order import Order

SIZES = st.integers(2, 400)
BATCHES = st.integers(2, 50)


@pytest.fixture(params=[None, 64], ids=["at once", "in windows"])
def window(request, monkeypatch):
    """Shuffle all pairs, or 64 of them among each other in chunks of 8."""
    monkeypatch.setattr(module, "CHUNK", 8)
    return request.param


def batches(order: Order, epoch: int) -> list[np.ndarray]:
    return [draw.positions for window in order.epoch(epoch) for draw in window]


def drawn(order: Order, epochs: range) -> np.ndarray:
    """Every position of some epochs, one after another."""
    return np.concatenate([positions for epoch in epochs for positions in batches(order, epoch)])


def in_windows(size: int, batch_size: int = 4, **options) -> Order:
    return Order([size], batch_size, 0, window=64, **options)


@settings(max_examples=40)
@given(size=SIZES, batch_size=BATCHES, seed=st.integers(0, 9), epoch=st.integers(1, 20), in_windows=st.booleans())
def test_every_pair_is_drawn_once_an_epoch_but_those_that_wait(size, batch_size, seed, epoch, in_windows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 8)
        order = Order([size], batch_size, seed, window=32 if in_windows else None)
        found = batches(order, epoch)
    batch_size = min(batch_size, size)
    assert len(found) == len(order) == size // batch_size
    assert {len(batch) for batch in found} == {batch_size}
    positions = np.concatenate(found)
    assert len(set(positions.tolist())) == len(positions) == size - size % batch_size
    assert positions.min() >= 0 and positions.max() < size


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    weights=st.lists(st.sampled_from([0.1, 0.29, 0.5, 1.0, 1.5, 2.0, 3.7]), min_size=3, max_size=3),
    batch_size=BATCHES,
    epoch=st.integers(1, 50),
    in_windows=st.booleans(),
)
def test_batches_are_full_and_as_many_as_promised_with_any_weights(sizes, weights, batch_size, epoch, in_windows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 8)
        try:
            order = Order(sizes, batch_size, 0, weights[: len(sizes)], 32 if in_windows else None)
        except ValueError:
            return
        assert [len(batch) for batch in batches(order, epoch)] == [order.batch_size] * len(order)


def test_same_seed_and_epoch_are_the_same_order(window):
    first, second = (Order([200], 16, seed=3, window=window) for _ in range(2))
    batches(first, 1)  # what was drawn before must not matter
    for one, other in zip(first.epoch(4), second.epoch(4), strict=True):
        for draw, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(draw.positions, same.positions)
            np.testing.assert_array_equal(draw.row_draws, same.row_draws)


@pytest.mark.parametrize("other", [(3, 2), (4, 1)], ids=["another epoch", "another seed"])
def test_epochs_and_seeds_differ(window, other):
    orders = [drawn(Order([200], 16, seed, window=window), range(epoch, epoch + 1)) for seed, epoch in ((3, 1), other)]
    assert not np.array_equal(*orders)


def test_pairs_that_wait_are_others_in_every_epoch(window):
    order = Order([100], 64, 0, window=window)
    waiting = [frozenset(range(100)) - frozenset(drawn(order, range(e, e + 1)).tolist()) for e in range(1, 11)]
    assert len(set(waiting)) == 10


def test_any_pair_may_come_first():
    """All orders are equally likely: 4,000 first batches of 1 in 10, each pair within 5 standard deviations of 400."""
    order = Order([10], 2, 0)
    first = [batches(order, epoch)[0][0] for epoch in range(1, 4001)]
    assert np.abs(np.bincount(first, minlength=10) - 400).max() < 5 * np.sqrt(4000 * 0.1 * 0.9)


def test_choice_is_uniform_and_new_in_every_epoch(window):
    order = Order([1000], 10, 0, window=window)
    first, second = (
        np.concatenate([draw.row_draws for part in order.epoch(epoch) for draw in part]) for epoch in (1, 2)
    )
    assert not set(first.tolist()) & set(second.tolist())
    counts, _ = np.histogram(first, bins=10, range=(0, 1))
    assert counts.sum() == 1000 and np.abs(counts - 100).max() < 5 * np.sqrt(1000 * 0.1 * 0.9)


# Windows


@pytest.mark.parametrize("batch_size", [4, 15, 30])
def test_window_spans_no_more_than_its_pairs_and_what_was_left(monkeypatch, batch_size):
    monkeypatch.setattr(module, "CHUNK", 8)
    for part in in_windows(1000, batch_size).epoch(1):
        assert sum(len(draw.positions) for draw in part) < max(64, 4 * batch_size) + 8 + batch_size


def test_neighbours_of_a_chunk_are_in_one_window(monkeypatch):
    """Reads stay long: but for what is left over for the next window, a chunk is never torn apart."""
    monkeypatch.setattr(module, "CHUNK", 8)
    parts = [np.concatenate([draw.positions for draw in part]) for part in in_windows(640).epoch(1)]
    assert len(parts) == 10
    for part in parts:
        chunks, members = np.unique(part // 8, return_counts=True)
        assert len(chunks) == 8 and (members == 8).all()


def test_pairs_of_a_window_are_shuffled_among_its_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    first = batches(in_windows(640, batch_size=16), 1)[0]
    assert len(set((first // 8).tolist())) > 4


def test_windows_of_two_epochs_hold_other_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    order = in_windows(640)
    first, second = ({int(i) // 8 for draw in next(order.epoch(epoch)) for i in draw.positions} for epoch in (1, 2))
    assert first != second


def test_nothing_as_long_as_the_data_is_made_when_it_is_read_in_windows(monkeypatch):
    """Chunks of 256, so the longest array of 1,000,000 pairs has 3,907 rows, or as many as the window."""
    longest = []
    original = np.random.default_rng

    class Watched:
        def __init__(self, seed):
            self.rng = original(seed)

        def permutation(self, x):
            longest.append(x if isinstance(x, int) else len(x))
            return self.rng.permutation(x)

        def random(self, size):
            longest.append(size)
            return self.rng.random(size)

    monkeypatch.setattr(module.np.random, "default_rng", Watched)
    order = Order([1_000_000], 512, 0, window=10_000)
    seen = sum(len(draw.positions) for part in order.epoch(1) for draw in part)
    assert seen == 1_000_000 // 512 * 512
    assert max(longest) <= 10_000 + 256


def test_window_holds_at_least_four_batches(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    assert len(next(iter(Order([1000], 50, 0, window=10).epoch(1)))) == 4


# Several data sets


def test_data_sets_are_numbered_through(window):
    assert sorted(drawn(Order([30, 50, 40], 4, 0, window=window), range(1, 2)).tolist()) == list(range(120))


@pytest.mark.parametrize("weight", [0.1, 0.5, 2.0, 2.5])
def test_weight_is_how_often_a_pair_is_drawn_in_an_epoch(monkeypatch, weight):
    """Passes follow one another, so that after any number of epochs no pair is more than one draw ahead of another."""
    monkeypatch.setattr(module, "CHUNK", 8)
    order = Order([100, 40], 2, 0, [1.0, weight])
    for epochs in (1, 3, 10, 20):
        counts = np.bincount(drawn(order, range(1, epochs + 1)), minlength=140)
        waiting = epochs  # at most the one pair an epoch that fills no batch
        assert counts[:100].sum() in range(100 * epochs - waiting, 100 * epochs + 1)
        assert abs(counts[100:].sum() - 40 * weight * epochs) <= waiting
        assert counts[100:].max() <= np.ceil(weight * epochs) + 1e-9
        assert np.sum(np.maximum(0, np.floor(weight * epochs) - counts[100:])) <= waiting


@pytest.mark.parametrize("weight", [0.25, 0.5, 2.0, 2.5])
def test_weight_is_kept_in_windows(monkeypatch, weight):
    """Here what waits may be a few chunks an epoch, never the same ones."""
    monkeypatch.setattr(module, "CHUNK", 8)
    order = Order([2000, 800], 4, 0, [1.0, weight], window=200)
    counts = np.bincount(drawn(order, range(1, 21)), minlength=2800)
    ratio = counts[2000:].mean() / counts[:2000].mean()
    assert ratio == pytest.approx(weight, rel=0.02)
    assert counts[2000:].min() >= 0.7 * weight * 20 - 1
    assert counts[2000:].max() <= np.ceil(weight * 20)


def test_data_sets_are_mixed_in_every_batch():
    order = Order([300, 300], 60, 0)
    assert all(10 < (positions < 300).sum() < 50 for positions in batches(order, 1))


# Errors


@pytest.mark.parametrize(("sizes", "weights"), [([0], None), ([1], None), ([10, 5], [0.1, 0.1])])
def test_fewer_than_two_pairs_an_epoch_are_refused(sizes, weights):
    with pytest.raises(ValueError, match=r"at least 2 pairs, got [01]"):
        Order(sizes, 4, 0, weights)


def test_batch_is_no_larger_than_an_epoch():
    order = Order([10, 100], 64, 0, [1.0, 0.05])
    assert (order.batch_size, len(order)) == (15, 1)
