"""Alignment from batches and from parts: what order, batching and merging must not change; and the sample it keeps."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freezealign.alignment import METRICS, RSA, SVCCA, Alignment, MutualKNN, measure_alignment
from freezealign.alignment.sample import PairSample
from freezealign.moments import Moments

SUMS = ["cka", "cka_biased", "cca", "svcca", "procrustes"]
QUICK = {"permutations": 5, "resamples": 5}
some = settings(max_examples=10)


def related(seed: int = 0, n: int = 60, dx: int = 5, dy: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Two spaces of the same items that have something in common."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dx)) + 1
    return x, x @ rng.normal(size=(dx, dy)) + rng.normal(size=(n, dy))


def accumulated(metric, x, y, cuts=(), sample=1000):
    """One accumulator, updated with the parts of x and y."""
    found = Alignment(metric, sample)
    for batch in zip(np.split(x, cuts), np.split(y, cuts)):
        found.update(*batch)
    return found


def merged(metric, x, y, cuts, order=None, sample=1000):
    """The parts of x and y, an accumulator each, merged in some order."""
    parts = [accumulated(metric, *part, sample=sample) for part in zip(np.split(x, cuts), np.split(y, cuts))]
    first, *others = [parts[i] for i in order or range(len(parts))]
    for other in others:
        first.merge(other)
    return first


def assert_same_score(one, other, exactly):
    """Equal to the last digit, or to 1e-9; NaN is equal to NaN."""
    if exactly:
        assert repr(one) == repr(other)
        return
    for mine, its in zip(dataclasses.astuple(one), dataclasses.astuple(other)):
        assert mine == (its if isinstance(its, (str, int)) else pytest.approx(its, abs=1e-9, nan_ok=True))


# A whole that fits the sample is measured again from its items, in the order of their hash: to the last bit.
# Of a larger one, the value comes from sums, which a different order rounds differently.
SAMPLES = [(name, 1000) for name in METRICS] + [(name, 25) for name in METRICS]
cut_points = st.lists(st.integers(0, 60), max_size=5).map(sorted)


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
@some
@given(cuts=cut_points, data=st.data())
def test_order_batching_and_merging_change_nothing(name, sample, cuts, data):
    x, y = related()
    whole = accumulated(name, x, y, sample=sample).compute(**QUICK)
    order, parts = (data.draw(st.permutations(range(count))) for count in (60, len(cuts) + 1))
    batched = accumulated(name, x[order], y[order], cuts, sample).compute(**QUICK)
    assert_same_score(batched, whole, exactly=sample == 1000)
    assert_same_score(merged(name, x, y, cuts, parts, sample).compute(**QUICK), whole, exactly=sample == 1000)


@pytest.mark.parametrize("name", METRICS)
def test_the_value_is_the_measure_of_all_items_whatever_the_sample(name):
    x, y = related(n=90)
    expected = METRICS[name]()(x, y)
    for sample in (20, 89, 90, 1000):
        score = accumulated(name, x, y, [13, 14, 70], sample).compute(**QUICK)
        assert score.value == pytest.approx(expected, abs=1e-9)
        assert (score.n, score.sampled) == (90, min(sample, 90))


@pytest.mark.parametrize("name", SUMS)
def test_sums_keep_no_more_items_than_the_sample(name):
    x, y = related(n=3000)
    found = accumulated(name, x, y, range(100, 3000, 100), sample=50)
    assert sum(len(priority) for priority, _, _ in found.kept.parts) <= 100


@pytest.mark.parametrize("name", ["cka", "mutual_knn"])
def test_an_update_longer_than_a_chunk_is_read_in_chunks(monkeypatch, name):
    x, y = related()
    expected = measure_alignment(x, y, name, **QUICK)
    monkeypatch.setattr("freezealign.alignment.vectors.CHUNK", 7)
    assert measure_alignment(x, y, name, **QUICK) == expected


@pytest.mark.parametrize("name", METRICS)
def test_merging_nothing_changes_nothing(name):
    x, y = related()
    expected = accumulated(name, x, y).compute(**QUICK)
    assert accumulated(name, x, y).merge(Alignment(name)).compute(**QUICK) == expected
    assert Alignment(name).merge(accumulated(name, x, y)).compute(**QUICK) == expected
    assert accumulated(name, x, y).update(x[:0], y[:0]).compute(**QUICK) == expected


@pytest.mark.parametrize("name", METRICS)
def test_what_is_merged_stays_as_it_was_and_on_its_own(name):
    x, y = related()
    one, other = (accumulated(name, x[part], y[part], sample=20) for part in (slice(20), slice(20, 60)))
    expected = other.compute(**QUICK)
    whole = Alignment(name, 20).merge(other).merge(one)
    before = whole.compute(**QUICK)
    assert_same_score(other.compute(**QUICK), expected, exactly=True)
    other.update(x[:10], y[:10])
    assert_same_score(whole.compute(**QUICK), before, exactly=True)


@pytest.mark.parametrize("name", METRICS)
def test_looking_at_the_score_in_between_changes_nothing(name):
    x, y = related()
    found = Alignment(name, 25)
    for start in range(0, 60, 15):
        found.update(x[start : start + 15], y[start : start + 15])
        assert_same_score(found.compute(**QUICK), found.compute(**QUICK), exactly=True)
    assert_same_score(found.compute(**QUICK), accumulated(name, x, y, sample=25).compute(**QUICK), exactly=False)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("made", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_buffers_may_be_used_again(name, made, dtype):
    x, y = (space.astype(dtype) for space in related())
    buffers, found = (np.empty((20, 5), dtype), np.empty((20, 4), dtype)), Alignment(name, 25)
    for start in range(0, 60, 20):
        for buffer, space in zip(buffers, (x, y)):
            buffer[:] = space[start : start + 20]
        found.update(*map(made, buffers))
    for buffer in buffers:
        buffer[:] = 7
    assert_same_score(found.compute(**QUICK), accumulated(name, x, y, [20, 40], 25).compute(**QUICK), exactly=True)


# Far from 0


def scattered(dtype, spread_of_means):
    """Three batches of 200; their means are ``spread_of_means`` apart, what they share is within them too."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8)) + np.repeat(rng.normal(size=(3, 8)), 200, 0) * spread_of_means
    y = x[:, :6] + rng.normal(size=(600, 6))
    return x.astype(dtype), y.astype(dtype)


# Directions within the batches hold 1e-6 of the variance there: of its covariance's digits, CCA has six fewer left, and
# of float32 batches that are shifted by the mean of the first another few.
@pytest.mark.parametrize(
    ("dtype", "spread", "when_merged", "when_added"),
    [(np.float64, 1, 1e-8, 1e-8), (np.float64, 1000, 1e-8, 1e-8), (np.float32, 1000, 2e-6, 1e-4)],
)
@pytest.mark.parametrize("name", SUMS)
def test_parts_with_means_far_apart_lose_no_digits(name, dtype, spread, when_merged, when_added):
    x, y = scattered(dtype, spread)
    expected = METRICS[name]()(x.astype(np.float64), y.astype(np.float64))
    for order in itertools.permutations(range(3)):
        found = merged(name, x, y, [200, 400], order, 4).value()
        assert found == pytest.approx(expected, abs=when_merged)
    assert accumulated(name, x, y, [200, 400], 4).value() == pytest.approx(expected, abs=when_added)


@pytest.mark.parametrize(("dtype", "allowed"), [(np.float32, 1e-5), (np.float64, 1e-9)])
@pytest.mark.parametrize("name", SUMS)
def test_a_mean_far_from_zero_costs_no_digits(name, dtype, allowed):
    rng = np.random.default_rng(1)
    x, y = related(n=500)
    x, y = ((space + 1000 * rng.normal(size=space.shape[1])).astype(dtype) for space in (x, y))
    expected = METRICS[name]()(x.astype(np.float64), y.astype(np.float64))
    for cuts in ([], [1], [200, 400]):
        assert accumulated(name, x, y, cuts, 4).value() == pytest.approx(expected, abs=allowed)
        assert merged(name, x, y, cuts, sample=4).value() == pytest.approx(expected, abs=allowed)


@some
@given(seed=st.integers(0, 999), cuts=st.lists(st.integers(0, 30), max_size=3).map(sorted), shift=st.floats(-5, 5))
def test_sums_are_those_of_the_shifted_vectors(seed, cuts, shift):
    x, y = (torch.from_numpy(space) + shift for space in related(seed, 30))
    whole = Moments(hsic=True)
    for batch in zip(x.tensor_split(cuts), y.tensor_split(cuts)):
        part = Moments(hsic=True)
        for few in zip(*(side.tensor_split([2]) for side in batch)):  # the first two are not the mean of the part
            part.update(few)
        whole.merge(part)
    spaces = [space - shift for space, shift in zip((x, y), whole.shifts)]
    squares = [space.square().sum(1) for space in spaces]
    expected = [
        *((whole.totals[i], spaces[i].sum(0)) for i in range(2)),
        *((whole.norms[i], squares[i].sum()) for i in range(2)),
        *((whole.products[i, j], spaces[i].T @ spaces[j]) for i, j in whole.blocks),
        *((whole.norm_products[i, j], squares[i] @ squares[j]) for i, j in whole.blocks),
        *((whole.weighted[i, j], squares[j] @ spaces[i]) for i in range(2) for j in range(2)),
        *((whole.mean(i), side.mean(0)) for i, side in enumerate((x, y))),
    ]
    for found, direct in expected:
        torch.testing.assert_close(found, direct, atol=1e-8, rtol=1e-10)
    assert whole.n == 30


# The sample


def numbered(items, width: int = 3, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs that tell which items they are."""
    items = torch.as_tensor(items)
    return items[:, None].expand(-1, width).to(dtype), (items[:, None] + torch.arange(2)).to(dtype)


def kept(sample: PairSample) -> list[int]:
    return sample.pairs()[0][:, 0].int().tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_item_is_kept_about_as_often(dtype):
    rng, times = np.random.default_rng(0), np.zeros(40)
    for _ in range(300):
        sample = PairSample(10)
        x = torch.from_numpy(rng.normal(size=(40, 3))).to(dtype)
        x[:, 0] = torch.arange(40)
        sample.add(x, x[:, :2] + 1)
        times[kept(sample)] += 1
    # 75 of 300 each, with a standard deviation of 7.5.
    assert times.sum() == 3000
    assert abs(times - 75).max() < 4 * 7.5


@pytest.mark.parametrize("values", [[0.0, 1.0], [-1.0, 0.0, 1.0], list(range(256))])
def test_the_sample_of_coarse_values_is_as_mixed_as_all(values):
    x = torch.from_numpy(np.random.default_rng(0).choice(values, (4000, 16))).float()
    sample = PairSample(1000)
    sample.add(x, x[:, :8])
    # Standard errors of the mean of 1,000.
    errors = (sample.pairs()[0].mean(0) - x.mean(0)) / (x.std(0) / math.sqrt(1000))
    assert errors.abs().max() < 4
    assert errors.square().mean() < 3


@some
@given(
    items=st.permutations(range(50)),
    cuts=st.lists(st.integers(0, 50), max_size=6).map(sorted),
    size=st.integers(4, 60),
    parts=st.integers(1, 3),
)
def test_the_sample_depends_on_the_items_only(items, cuts, size, parts):
    expected = PairSample(size)
    expected.add(*numbered(range(50)))
    samples = [PairSample(size) for _ in range(parts)]
    for number, batch in enumerate(np.split(np.array(items), cuts)):
        samples[number % parts].add(*numbered(batch))
    for other in samples[1:]:
        samples[0].merge(other)
    assert len(kept(samples[0])) == min(size, 50)
    assert kept(samples[0]) == kept(expected)
    assert all(torch.equal(*pair) for pair in zip(samples[0].pairs(), numbered(kept(expected))))


@pytest.mark.parametrize("size", [4, 5, 99, 100, 101, None])
def test_the_sample_is_as_large_as_it_says_and_the_beginning_of_a_larger(size):
    sample, larger = PairSample(size), PairSample()
    for start in range(0, 100, 10):
        for each in (sample, larger):
            each.add(*numbered(range(start, start + 10)))
        found = kept(sample)
        assert len(found) == len(set(found)) == min(start + 10, size or 100)
        assert found == kept(larger)[: len(found)]


def test_equal_pairs_all_count():
    sample = PairSample(8)
    sample.add(*numbered([3] * 20))
    sample.add(*numbered([3] * 3))
    assert kept(sample) == [3] * 8
    sample = PairSample()
    sample.add(*numbered([5, 3, 5, 3, 3]))
    assert sorted(kept(sample)) == [3, 3, 3, 5, 5]


def test_pairs_with_one_side_in_common_are_different():
    _, y = numbered(range(200))
    halves = PairSample(100)
    halves.add(torch.ones(200, 3), y)
    first = halves.pairs()[1][:, 0]
    assert len(first.unique()) == 100
    assert abs(first.mean() - 99.5) < 4 * 57.7 / math.sqrt(200)


def test_the_precision_of_pairs_stays():
    for dtype in (torch.float32, torch.float64):
        sample = PairSample(4)
        sample.add(*numbered(range(9), dtype=dtype))
        assert [side.dtype for side in sample.pairs()] == [dtype, dtype]


# Errors


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("wrong", [(6, 4), (5, 3)])
def test_widths_that_change_are_refused_and_leave_everything_as_it_was(name, wrong):
    x, y = related()
    found, other = accumulated(name, x, y), Alignment(name).update(np.ones((9, wrong[0])), np.ones((9, wrong[1])))
    expected = found.compute(**QUICK)
    message = rf"the pairs so far are \(5, 4\) wide, these are \({wrong[0]}, {wrong[1]}\)"
    with pytest.raises(ValueError, match=message):
        found.update(np.ones((9, wrong[0])), np.ones((9, wrong[1])))
    with pytest.raises(ValueError, match=message):
        found.merge(other)
    assert found.compute(**QUICK) == expected


def test_batches_that_do_not_belong_together_are_refused():
    x, y = related()
    with pytest.raises(ValueError, match="x has 60 items and y has 59: row i of both must be one item"):
        Alignment().update(x, y[:-1])
    with pytest.raises(ValueError, match=r"x must be vectors .*got the shape \(5,\)"):
        Alignment().update(x[0], y)
    with pytest.raises(ValueError, match=r"y must be vectors .*got the shape \(60, 0\)"):
        Alignment().update(x, y[:, :0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_is_named_and_not_counted(bad):
    x, y = related()
    spoiled, found = y.copy(), accumulated("cka", x, y)
    spoiled[41, 2] = bad
    expected = found.compute(**QUICK)
    with pytest.raises(ValueError, match=r"^y: NaN or infinity in 1 items, the first \[41\]"):
        found.update(x, spoiled)
    assert found.compute(**QUICK) == expected


@pytest.mark.parametrize("name", METRICS)
def test_too_few_items_are_refused_when_the_value_is_asked_for(name):
    x, y = related()
    with pytest.raises(ValueError, match=r"at least \d+ items are needed, got 0"):
        Alignment(name).value()
    found = Alignment(name).update(x[:3], y[:3])
    with pytest.raises(ValueError, match=r"at least \d+ items are needed, got 3"):
        found.compute()
    assert math.isfinite(found.update(x[3:], y[3:]).value())


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("sample", [20, 1000])
def test_a_constant_space_is_refused(name, sample):
    x, y = related()
    with pytest.raises(ValueError, match=r"y is constant|equally far"):
        accumulated(name, x, np.ones_like(y), [20], sample).value()


def test_measures_are_found_by_name_or_taken_as_they_are():
    assert Alignment("svcca").measure.variance == 0.99
    assert Alignment(SVCCA(0.5)).measure.variance == 0.5
    with pytest.raises(ValueError, match=r"no measure is called 'knn'; there are cka,.* rsa"):
        Alignment("knn")


# Bad and unusual input


@pytest.mark.parametrize(
    ("mine", "its"),
    [
        (("cka",), ("cka_biased",)),
        ((MutualKNN(3),), (MutualKNN(5),)),
        ((SVCCA(0.5),), (SVCCA(0.9),)),
        (("cka", 100), ("cka", 10)),
    ],
)
def test_accumulators_of_different_measures_options_or_samples_are_not_merged(mine, its):
    x, y = related()
    with pytest.raises(ValueError, match=r"an accumulator of .* cannot take one of .*"):
        Alignment(*mine).update(x, y).merge(Alignment(*its).update(x, y))


@pytest.mark.parametrize("metric", ["cka", "rsa"])
def test_an_accumulator_is_not_merged_with_itself(metric):
    found = accumulated(metric, *related())
    with pytest.raises(ValueError, match="cannot be merged with itself"):
        found.merge(found)


@pytest.mark.parametrize(("metric", "size"), [("mutual_knn", 8), (RSA(), 3), ("rsa", 0), ("cka", 3), ("cka", -1)])
def test_a_sample_is_no_smaller_than_the_measure_needs(metric, size):
    with pytest.raises(ValueError, match=rf"a sample of {size} is too small: \w+ needs \d+ items"):
        Alignment(metric, sample=size)


def test_a_space_of_few_different_vectors_is_not_constant():
    x, y = (np.repeat(space, 200, 0) for space in related(n=5))
    assert accumulated("cka", x, y, sample=50).value() == pytest.approx(METRICS["cka"]()(x, y))


def test_the_sample_of_coarse_float64_values_depends_on_no_order():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (20_000, 64))).double()
    samples = []
    for rows in (x, x.flip(0)):
        sample = PairSample(1000)
        sample.add(rows, rows)
        samples.append(sorted(sample.pairs()[0].tolist()))
    assert samples[0] == samples[1]


def test_batches_of_different_precision_are_added():
    x, y = related()
    found = Alignment("cka").update(x[:30].astype(np.float32), y[:30]).update(x[30:], y[30:].astype(np.float32))
    assert found.value() == pytest.approx(METRICS["cka"]()(x, y), abs=1e-6)
