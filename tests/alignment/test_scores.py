"""What surrounds a value: that the null, the p-value, the calibration and the interval keep what they promise."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from freezealign.alignment import (
    CKNNA,
    METRICS,
    Alignment,
    AlignmentScore,
    MutualKNN,
    linear_cka,
    measure_alignment,
)
from freezealign.alignment.significance import score_pairs

SMALL = {name: make(3) if (make := METRICS[name]) in (MutualKNN, CKNNA) else make() for name in METRICS}


def independent(seed: int, n: int, dx: int, dy: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dx)), rng.normal(size=(n, dy))


def correlated(seed: int, n: int, d: int, correlation: float) -> tuple[np.ndarray, np.ndarray]:
    """Gaussians whose dimension i of x has that correlation with dimension i of y, and with no other."""
    x, noise = independent(seed, n, d, d)
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


# Nothing in common


@pytest.mark.parametrize("width", [16, 256, 1024])
def test_unbiased_cka_of_unrelated_spaces_is_zero_at_any_width(width):
    x, y = independent(width, 500, width, width)
    score = measure_alignment(x, y, "cka", permutations=20, resamples=40)
    assert score.low < 0 < score.high
    assert abs(score.value) < 0.02
    assert abs(score.chance) < 0.005


@pytest.mark.parametrize("width", [16, 256, 1024])
def test_unbiased_cka_of_unrelated_spaces_is_zero_on_average(width):
    values = [linear_cka(*independent(seed, 60, width, width)) for seed in range(40)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(40)


@pytest.mark.parametrize(("width", "least"), [(256, 0.3), (1024, 0.6)])
def test_biased_cka_of_unrelated_wide_spaces_is_high_until_calibrated(width, least):
    x, y = independent(width, 500, width, width)
    score = measure_alignment(x, y, "cka_biased", permutations=40, resamples=1)
    assert score.value > least
    assert score.chance == pytest.approx(score.value, abs=0.01)
    assert score.calibrated < 0.01


# Of 40 uniform p-values in twentieths, 12 or more are at most 0.1 once in 1,600 times, and fewer than 9 or more than
# 31 at most 0.5 once in 1,700 times each.
@pytest.mark.parametrize("name", METRICS)
def test_p_values_of_unrelated_spaces_are_uniform(name):
    options = {"permutations": 19, "resamples": 1}
    p = np.array(
        [measure_alignment(*independent(s, 30, 4, 3), SMALL[name], seed=s, **options).p_value for s in range(40)]
    )
    assert (p <= 0.1 + 1e-9).sum() < 12
    assert 9 <= (p <= 0.5 + 1e-9).sum() <= 31
    np.testing.assert_allclose(p * 20, np.round(p * 20), atol=1e-9)


@pytest.mark.parametrize(("n", "k"), [(40, 3), (60, 10)])
def test_chance_of_a_shared_neighbour_is_k_of_the_others(n, k):
    x, y = correlated(0, n, 4, 0.9)
    score = measure_alignment(x, y, MutualKNN(k), permutations=200, resamples=1)
    # A shuffle has n k² / (n - 1) shared neighbours on average; k (n - 1 - k) / (n - 1) of variance an item or so.
    error = math.sqrt((1 - k / (n - 1)) / (n - 1) / n / 200)
    assert score.chance == pytest.approx(k / (n - 1), abs=5 * error)
    assert score.value > 3 * score.chance


# Something in common


@pytest.mark.parametrize("name", METRICS)
def test_related_spaces_get_the_smallest_p_value_there_is(name):
    x, y = correlated(1, 80, 4, 0.95)
    for permutations in (1, 19, 49):
        score = measure_alignment(x, y, name, permutations=permutations, resamples=1)
        assert score.p_value == pytest.approx(1 / (permutations + 1))
        assert score.calibrated > 0.5 * score.value


@pytest.mark.parametrize("name", METRICS)
def test_equal_spaces_are_calibrated_to_one(name):
    x, _ = independent(2, 50, 4, 4)
    score = measure_alignment(x, x, name, permutations=30, resamples=1)
    assert (score.value, score.calibrated) == pytest.approx((1, 1), abs=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_calibration_is_the_way_from_threshold_to_one(name):
    x, y = correlated(3, 60, 3, 0.8)
    score = measure_alignment(x, y, name, permutations=40, resamples=1)
    assert score.chance < score.threshold < score.value
    assert score.calibrated == pytest.approx((score.value - score.threshold) / (1 - score.threshold), abs=1e-5)


@pytest.mark.parametrize("correlation", [0.3, 0.6, 0.9])
def test_the_interval_of_cka_holds_its_limit(correlation):
    """Cov(x, y) is the correlation times I: of infinitely many items, CKA is its square."""
    inside = 0
    for seed in range(60):
        x, y = correlated(seed, 120, 4, correlation)
        score = measure_alignment(x, y, "cka", permutations=1, resamples=60, seed=seed)
        inside += score.low <= correlation**2 <= score.high
    assert 51 <= inside <= 60


def test_the_interval_is_as_wide_as_values_of_new_items_are_spread():
    scores = [
        measure_alignment(*correlated(seed, 150, 4, 0.5), "cka", permutations=1, resamples=60) for seed in range(40)
    ]
    width = np.mean([score.high - score.low for score in scores]) / 2 / 1.96
    assert width == pytest.approx(np.std([score.value for score in scores]), rel=0.35)


def test_the_interval_narrows_with_the_root_of_all_items():
    x, y = correlated(0, 6400, 4, 0.5)
    narrow, wide = (
        Alignment("cka", sample=400).update(x[:n], y[:n]).compute(permutations=1, resamples=100) for n in (6400, 400)
    )
    assert (narrow.sampled, wide.sampled) == (400, 400)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(4, rel=0.3)


def test_too_few_items_to_halve_have_no_interval():
    for n, metric, has_one in [
        (7, "cka", False),
        (8, "cka", True),
        (23, "mutual_knn", False),
        (24, "mutual_knn", True),
    ]:
        score = measure_alignment(*correlated(4, n, 3, 0.5), metric, permutations=5, resamples=5)
        assert [math.isfinite(end) for end in (score.low, score.high)] == [has_one, has_one]
        assert math.isfinite(score.value)


# Settings


@pytest.mark.parametrize("name", METRICS)
def test_the_seed_decides(name):
    x, y = correlated(5, 40, 4, 0.5)
    same, again, other = (measure_alignment(x, y, name, permutations=8, resamples=8, seed=seed) for seed in (3, 3, 4))
    assert same == again
    assert (same.value, same.n) == (other.value, other.n)
    assert (same.low, same.chance) != (other.low, other.chance)


@pytest.mark.parametrize("option", ["permutations", "resamples"])
@pytest.mark.parametrize("number", [0, -3])
def test_fewer_than_one_draw_is_refused(option, number):
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got {number}"):
        measure_alignment(*correlated(6, 40, 4, 0.5), **{option: number})


def test_errors_of_the_measure_reach_the_caller():
    x, y = independent(7, 11, 3, 3)
    with pytest.raises(ValueError, match="at least 12 items are needed, got 11"):
        measure_alignment(x, y, "mutual_knn")
    with pytest.raises(ValueError, match="x has 11 items and y has 10"):
        measure_alignment(x, y[:10])
    with pytest.raises(ValueError, match="x is constant"):
        measure_alignment(np.ones_like(x), y)


def test_a_score_reads_as_a_line():
    score = AlignmentScore("cka", 0.51239, 2000, 0.4, 0.6, 0.01, 0.02, 0.005, 0.5, 2000)
    line = "cka 0.512 [0.400, 0.600], n = 2,000; chance 0.010, calibrated 0.500, p = 0.005"
    assert str(score) == line
    assert str(dataclasses.replace(score, sampled=1000)) == f"{line} at n = 1,000"
    assert str(dataclasses.replace(score, low=math.nan, high=math.nan)) == line.replace(" [0.400, 0.600]", "")


class Bar:
    def __init__(self, options):
        self.options, self.steps = options, 0

    def update(self):
        self.steps += 1

    def close(self):
        pass


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_if_wanted(monkeypatch, shown):
    bars, module = [], "freezealign.alignment.significance"
    monkeypatch.setattr(f"{module}.tqdm", lambda **options: bars.append(Bar(options)) or bars[-1])
    measure_alignment(*correlated(8, 40, 4, 0.5), permutations=3, resamples=4, show_progress_bar=shown)
    assert [(bar.options["total"], bar.options["disable"], bar.steps) for bar in bars] == [(7, not shown, 7)]


# Faults


class Rounded(MutualKNN):
    """Without the last digits."""

    def compare(self, first, second):
        return round(super().compare(first, second), 9)


def test_shuffles_with_as_many_shared_neighbours_count():
    options = {"permutations": 50, "resamples": 1}
    for seed in range(20):
        x, y = independent(seed, 20, 3, 3)
        exact = measure_alignment(x, y, Rounded(2), **options)
        assert measure_alignment(x, y, MutualKNN(2), **options).p_value == exact.p_value


def test_more_dimensions_than_items_prove_nothing_by_canonical_correlation():
    for seed in range(5):
        score = measure_alignment(*independent(seed, 20, 30, 40), "cca", permutations=30, resamples=1)
        assert score.value == pytest.approx(1)
        assert score.p_value == 1
        assert score.calibrated == 0


def test_halves_that_canonical_correlation_cannot_tell_apart_are_no_interval():
    score = measure_alignment(*independent(0, 100, 60, 60), "cca", permutations=1, resamples=30)
    assert math.isnan(score.low) or score.high - score.low > 1e-3


@pytest.mark.parametrize("name", [name for name in METRICS if name not in ("mutual_knn", "cknna")])
def test_a_sample_or_halves_on_which_the_measure_is_not_defined_say_so(name):
    x, y = (torch.from_numpy(space) for space in correlated(9, 60, 3, 0.5))
    draws = {"permutations": 5, "resamples": 9, "show_progress_bar": False}
    with pytest.raises(ValueError, match=f"{name} of x and y is not defined"):
        score_pairs(SMALL[name], [0.5], 9000, [torch.ones_like(x)], [y], [(0, 0)], **draws)
    x[2:] = x[2]  # a quarter of the halves are without the two that are others
    [score] = score_pairs(SMALL[name], [0.5], 9000, [x], [y], [(0, 0)], **draws)
    assert math.isfinite(score.threshold) and math.isnan(score.low) and math.isnan(score.high)
