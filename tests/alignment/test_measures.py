"""Every measure against its definition over all pairs of items, written out; then by hand, and what it is blind to."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats
from scipy.spatial.distance import pdist, squareform

from freezealign.alignment import (
    CCA,
    CKNNA,
    METRICS,
    RBFCKA,
    RSA,
    SVCCA,
    LinearCKA,
    MutualKNN,
    Procrustes,
    cca,
    cknna,
    linear_cka,
    measure,
    measure_alignment,
    mutual_knn,
    procrustes,
    rbf_cka,
    rsa,
    svcca,
    vectors,
)
from freezealign.alignment.significance import score_pairs

# The definitions


def hsic1(a, b):
    n, one = len(a), np.ones(len(a))
    a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
    means = (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
    return (np.trace(a @ b) + means - 2 / (n - 2) * (one @ a @ b @ one)) / (n * (n - 3))


def biased_hsic(a, b):
    centring = np.eye(len(a)) - 1 / len(a)
    return np.trace(centring @ a @ centring @ b)


def normalised(hsic, a, b):
    return hsic(a, b) / math.sqrt(hsic(a, a) * hsic(b, b))


def gaussian_kernel(x, bandwidth):
    squares = pdist(x, "sqeuclidean")
    return np.exp(-squareform(squares) / (2 * bandwidth**2 * squares.mean()))


def plain_rbf(x, y, bandwidth):
    return normalised(hsic1, gaussian_kernel(x, bandwidth), gaussian_kernel(y, bandwidth))


def cosines(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def neighbours(x, k):
    """(n, n), True where j is one of the k nearest others of i."""
    similarity, found = cosines(x), np.zeros((len(x), len(x)), bool)
    for i, row in enumerate(similarity):
        found[i, [j for j in np.argsort(-row) if j != i][:k]] = True
    return found


def plain_mutual_knn(x, y, k):
    return (neighbours(x, k) & neighbours(y, k)).sum() / (k * len(x))


def plain_cknna(x, y, k):
    def align(a, b):
        both = neighbours(a, k) & neighbours(b, k)
        centred = [cosines(space) - cosines(space).mean(1, keepdims=True) for space in (a, b)]
        return (both * centred[0] * centred[1]).sum()

    return align(x, y) / math.sqrt(align(x, x) * align(y, y))


def plain_cca(x, y):
    bases = [linalg.orth(space - space.mean(0), rcond=1e-6) for space in (x, y)]
    return linalg.svdvals(bases[0].T @ bases[1]).mean()


def plain_svcca(x, y, variance):
    bases = []
    for space in (x, y):
        basis, values, _ = linalg.svd(space - space.mean(0), full_matrices=False)
        shares = np.cumsum(values**2) / (values**2).sum()
        bases.append(basis[:, : 1 + np.argmax(shares >= variance)])
    return linalg.svdvals(bases[0].T @ bases[1]).mean()


def plain_procrustes(x, y):
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(space - space.mean(0), [(0, 0), (0, width - space.shape[1])]) for space in (x, y))
    x, y = x / linalg.norm(x), y / linalg.norm(y)
    rotation, _ = linalg.orthogonal_procrustes(x, y)
    return 1 - linalg.norm(x @ rotation - y) ** 2 / 2


def plain_rsa(x, y):
    return stats.spearmanr(pdist(x, "correlation"), pdist(y, "correlation")).statistic


CASES = {
    "cka": (LinearCKA(), lambda x, y: normalised(hsic1, x @ x.T, y @ y.T)),
    "cka_biased": (LinearCKA(unbiased=False), lambda x, y: normalised(biased_hsic, x @ x.T, y @ y.T)),
    "rbf_cka": (RBFCKA(), lambda x, y: plain_rbf(x, y, 0.5)),
    "rbf_cka, wide": (RBFCKA(1.5), lambda x, y: plain_rbf(x, y, 1.5)),
    "mutual_knn": (MutualKNN(3), lambda x, y: plain_mutual_knn(x, y, 3)),
    "cknna": (CKNNA(4), lambda x, y: plain_cknna(x, y, 4)),
    "cca": (CCA(), plain_cca),
    "svcca": (SVCCA(0.8), lambda x, y: plain_svcca(x, y, 0.8)),
    "procrustes": (Procrustes(), plain_procrustes),
    "rsa": (RSA(), plain_rsa),
}
MEASURES = {name: found for name, (found, _) in CASES.items()}


def related(seed: int, n: int, dx: int, dy: int) -> tuple[np.ndarray, np.ndarray]:
    """Two spaces of the same items that have something in common, and means that are not 0."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dx))
    y = x @ rng.normal(size=(dx, dy)) / np.sqrt(dx) + rng.normal(size=(n, dy))
    return x + rng.normal(size=dx), y + rng.normal(size=dy)


@pytest.fixture(params=["few", "many"])
def path(request, monkeypatch):
    """Matrices over all pairs of items, or sums and small tiles."""
    if request.param == "many":
        monkeypatch.setattr(measure, "FEW", 0)
        monkeypatch.setattr(measure, "TILE_ELEMENTS", 150)
        monkeypatch.setattr(vectors, "CHUNK", 7)
    return request.param


def allowed(name, path, dtype=np.float64):
    """Of many items, RSA tells 65,536 distances apart: 6e-5 for 31 items in 3 dimensions, less for more of either."""
    if name == "rsa" and path == "many":
        return 1e-4
    return 1e-9 if dtype == np.float64 else 2e-6


SHAPES = [(0, 60, 6, 5), (1, 31, 3, 40), (2, 12, 20, 4), (3, 45, 4, 4)]
STORED = [(np.float64, shape) for shape in SHAPES] + [(np.float32, (4, 200, 24, 16)), (np.float16, (5, 300, 32, 24))]


@pytest.mark.parametrize(("dtype", "shape"), STORED)
@pytest.mark.parametrize("name", CASES)
def test_measure_is_its_definition(name, path, dtype, shape):
    found, plain = CASES[name]
    x, y = (space.astype(dtype) for space in related(*shape))
    expected = plain(x.astype(np.float64), y.astype(np.float64))
    assert found(x, y) == pytest.approx(expected, abs=allowed(name, path, dtype), rel=0)


@pytest.mark.parametrize("tile", [1, 50, 51, 10_000])
@pytest.mark.parametrize("name", ["rbf_cka", "mutual_knn", "cknna", "rsa"])
def test_size_of_a_tile_changes_nothing(monkeypatch, name, tile):
    x, y = related(6, 50, 5, 7)
    found = CASES[name][0]
    monkeypatch.setattr(measure, "FEW", 0)
    expected = found(x, y)
    monkeypatch.setattr(measure, "TILE_ELEMENTS", tile)
    assert found(x, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_more_items_than_few_are_measured_without_a_matrix_over_their_pairs(monkeypatch, name):
    found, plain = CASES[name]
    x, y = related(7, measure.FEW + 1, 5, 4)
    monkeypatch.setattr(type(found), "describe", None)
    assert found(x, y) == pytest.approx(plain(x, y), abs=allowed(name, "many"), rel=0)


@pytest.mark.parametrize("name", CASES)
def test_pairs_of_many_spaces_are_measured_as_each_alone(name, path):
    found = MEASURES[name]
    (a, b), (c, d) = related(8, 30, 5, 4), related(9, 30, 3, 6)
    xs, ys = [[vectors.Vectors(space) for space in side] for side in ((a, c), (b, d))]
    pairs = [(1, 0), (0, 1), (0, 0)]
    expected = [found(c, b), found(a, d), found(a, b)]
    assert found.measure_pairs(xs, ys, pairs) == pytest.approx(expected, abs=1e-12)


FUNCTIONS = [
    (linear_cka, LinearCKA, ()),
    (linear_cka, LinearCKA, (False,)),
    (rbf_cka, RBFCKA, (0.9,)),
    (mutual_knn, MutualKNN, (4,)),
    (cknna, CKNNA, (4,)),
    (cca, CCA, ()),
    (svcca, SVCCA, (0.7,)),
    (procrustes, Procrustes, ()),
    (rsa, RSA, ()),
]


def test_functions_are_the_measures_with_their_options_and_names_are_theirs():
    x, y = related(10, 40, 6, 5)
    for function, make, options in FUNCTIONS:
        assert function(x, y, *options) == make(*options)(x, y)
    assert [make().name for make in METRICS.values()] == list(METRICS)


# By hand

# Three directions of four items that are at right angles, and have mean 0.
A, B, C = np.array([[1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], float)
AB, AC = np.stack([A, B], 1), np.stack([A, C], 1)
STEEP = np.array([[1.0, 1], [1, -1]]) * [10, 1]  # the first direction has 100 / 101 of the variance, 0.9901
BENT = np.array([[-1.0], [-1], [1], [3]])
STEPS = squareform(np.arange(1, 11) / 50)


def circle(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def correlated(sign):
    """Five items whose correlations are steps apart, in one order or the other."""
    return linalg.cholesky(np.eye(5) + sign * STEPS, lower=True) @ linalg.helmert(6)  # makes rows with mean 0


ROUND = circle(0, 10, 30, 70)  # nearest first: 0 has 1, 2; 1 has 0, 2; 2 has 1, 0; 3 has 2, 1
BY_HAND = [
    ("the same circle", mutual_knn, ROUND, ROUND, (1,), 1),
    # 0 has 1, 3; 1 has 0, 3; 2 has 3, 1; 3 has 1, 0: items 0 and 1 agree, then one each does.
    ("two of four", mutual_knn, ROUND, circle(0, 10, 70, 30), (1,), 2 / 4),
    ("two of four, of two neighbours", mutual_knn, ROUND, circle(0, 10, 70, 30), (2,), 4 / 8),
    # 0 has 2, 3; 1 has 3, 2; 2 has 0, 3; 3 has 2, 0: item 3 agrees, then one each does.
    ("one of four", mutual_knn, ROUND, circle(0, 70, 10, 30), (1,), 1 / 4),
    ("one of four, of two neighbours", mutual_knn, ROUND, circle(0, 70, 10, 30), (2,), 4 / 8),
    # 0 has 3, 1; 1 has 2, 3; 2 has 1, 3; 3 has 0, 1: item 2 agrees, then 1, 1, 1 and 1 of 2.
    ("another of four", mutual_knn, ROUND, circle(0, 30, 45, 10), (1,), 1 / 4),
    ("another of four, of two neighbours", mutual_knn, ROUND, circle(0, 30, 45, 10), (2,), 4 / 8),
    # Of each item one of the two nearest is more than 90° away, and still nearer than the item is to itself in neither.
    ("far neighbours", mutual_knn, circle(0, 95, 185, 276), circle(0, 185, 95, 276), (2,), 1 / 2),
    # Pairs 01, 23, 45 are close in x; 02, 14, 35 in y.
    ("no neighbour in common", mutual_knn, circle(0, 1, 90, 91, 180, 181), circle(0, 90, 1, 180, 91, 181), (1,), 0),
    ("no pair in common", cknna, circle(0, 1, 90, 91, 180, 181), circle(0, 90, 1, 180, 91, 181), (1,), 0),
    # Canonical correlations 1 and 0; xᵀy = diag(4, 0), ‖x‖² = 8 and ‖xᵀx‖² = 32.
    ("one direction of two", cca, AB, AC, (), 1 / 2),
    ("one direction of two", procrustes, AB, AC, (), 4 / 8),
    ("one direction of two", linear_cka, AB, AC, (False,), 16 / 32),
    *(("at right angles", found, A[:, None], B[:, None], (), 0) for found in (cca, procrustes)),
    ("at right angles, biased", linear_cka, A[:, None], B[:, None], (False,), 0),
    # Off the diagonal, U-centred, x has 4/3 for two pairs and -2/3 for four, y for others: -48/9 of 96/9.
    ("at right angles", linear_cka, A[:, None], B[:, None], (), -1 / 2),
    # Σ xy = 6, Σ x² = 4 and Σ y² = 11 about their means.
    *(("one dimension", found, -B[:, None], BENT, (), 6 / math.sqrt(44)) for found in (cca, procrustes)),
    ("one dimension", linear_cka, -B[:, None], BENT, (False,), 36 / 44),
    *(("little variance", svcca, AB * [10, 1], AC * [10, 1], (share,), 1) for share in (0.5, 0.99)),
    *(("all variance", svcca, AB * [10, 1], AC * [10, 1], (share,), 1 / 2) for share in (0.995, 1)),
    # Correlations c + e and c - e: what is near in one space is far in the other.
    ("reversed order", rsa, correlated(1), correlated(-1), (), -1),
    ("the same order", rsa, correlated(1), correlated(1), (), 1),
]


def test_values_by_hand(path):
    for what, found, x, y, options, expected in BY_HAND:
        assert found(x, y, *options) == pytest.approx(expected, abs=1e-6), (what, found.__name__)
    far = circle(0, 95, 185, 276), circle(0, 185, 95, 276)
    assert cknna(*far, 2) == pytest.approx(plain_cknna(*far, 2))


def test_equal_shares_of_neighbours_are_equal_numbers():
    """Rounding in their sum would order runs of the toy study whose shares are the same."""
    for seed in range(20):
        value = mutual_knn(*related(seed, 64, 5, 4))
        assert value == pytest.approx(round(640 * value) / 640, abs=3e-16, rel=0)


def test_a_wide_gaussian_kernel_is_linear():
    x, y = related(11, 40, 6, 5)
    assert rbf_cka(x, y, 300) == pytest.approx(linear_cka(x, y), abs=1e-4)
    assert abs(rbf_cka(x, y, 0.3) - linear_cka(x, y)) > 0.01


def test_biased_cka_is_high_for_wide_spaces_without_anything_in_common():
    x, y = np.random.default_rng(0).normal(size=(2, 100, 400))
    assert linear_cka(x, y, unbiased=False) == pytest.approx(400 / 500, abs=0.02)
    assert linear_cka(x, y) == pytest.approx(0, abs=0.02)


# What a measure does not see


def rotation(seed: int, width: int) -> np.ndarray:
    return linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def linear_map(seed: int, width: int) -> np.ndarray:
    return rotation(seed, width) * np.geomspace(0.1, 10, width) @ rotation(seed + 1, width)


def shuffled(x: np.ndarray, seed: int) -> np.ndarray:
    return x[np.random.default_rng(seed).permutation(len(x))]


SHIFTED = ["cka", "cka_biased", "rbf_cka", "rbf_cka, wide", "cca", "svcca", "procrustes"]
CHANGES = {  # what is done to x, and with other random numbers to y: of two seeds, its own and that of both
    "rotation": ([*SHIFTED, "mutual_knn", "cknna"], lambda x, own, both: x @ rotation(own, x.shape[1])),
    "scale": (CASES, lambda x, own, both: x * 10 ** np.random.default_rng(own).uniform(-30, 30)),
    "shift": (SHIFTED, lambda x, own, both: x + np.random.default_rng(own).uniform(-500, 500, x.shape[1])),
    "invertible map": (["cca"], lambda x, own, both: x @ linear_map(own, x.shape[1])),
    "order of items": (CASES, lambda x, own, both: shuffled(x, both)),
}
some = settings(max_examples=15)
shapes = st.tuples(st.integers(0, 10**6), st.integers(12, 30), st.integers(3, 9), st.integers(3, 9))


@pytest.mark.parametrize("change", CHANGES)
@some
@given(shape=shapes)
def test_a_measure_is_blind_to(change, shape):
    names, changed = CHANGES[change]
    x, y = related(*shape)
    other_x, other_y = (changed(space, shape[0] + own, shape[0]) for own, space in enumerate((x, y)))
    for name in names:
        assert MEASURES[name](other_x, other_y) == pytest.approx(MEASURES[name](x, y), abs=1e-8, rel=0), name


@pytest.mark.parametrize("name", CASES)
@some
@given(shape=shapes)
def test_a_measure_is_symmetric_and_one_for_equal_spaces(name, shape):
    x, y = related(*shape)
    found = MEASURES[name]
    assert found(y, x) == pytest.approx(found(x, y), abs=1e-8, rel=0)
    assert found(x, x) == pytest.approx(1, abs=1e-9)
    assert found(x, y) <= 1 + 1e-9


@pytest.mark.parametrize("name", CASES)
def test_what_a_measure_sees(name, path):
    x, _ = related(13, 80, 4, 2)
    noise, order = np.random.default_rng(0).normal(size=x.shape), np.random.default_rng(1).permutation(80)
    assert MEASURES[name](x, x + 0.05 * noise) > 0.7 > 0.5 > MEASURES[name](x, x[order])
    x, _ = related(12, 60, 8, 2)
    assert (MEASURES[name](x, x @ linear_map(0, 8)) < 0.95) == (name != "cca")


# What goes in

FORMS = {
    "a list": np.ndarray.tolist,
    "columns first": np.asfortranarray,
    "a view": lambda x: np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3],
    "a reversed view": lambda x: x[::-1].copy()[::-1],
    "a tensor": torch.from_numpy,
}
KINDS = ["float16", "float32", "float64", "int8", "int64", "bool"]


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_any_type_and_form_are_read_and_stay_as_they_are(path, kind):
    x, y = (np.maximum(8 * space, 0).astype(kind) for space in related(14, 30, 6, 5))
    before = x.copy()
    expected = linear_cka(x.astype(np.float64), y.astype(np.float64))
    for form, made in FORMS.items():
        assert linear_cka(made(x), made(y)) == pytest.approx(expected, abs=1e-6), form
        assert linear_cka(made(x), y) == pytest.approx(expected, abs=1e-6), form
    assert np.array_equal(x, before)


@pytest.mark.parametrize("name", ["cka", "rsa"])
def test_tensors_of_training_are_read(path, name):
    x, y = (torch.from_numpy(space).bfloat16() for space in related(14, 30, 6, 5))
    expected = MEASURES[name](x.float(), y.float())
    assert MEASURES[name](x.requires_grad_(), y) == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["c", "r"])
def test_memory_mapped_files_are_read_without_a_warning(tmp_path, path, mode):
    x, y = related(15, 30, 6, 5)
    np.save(tmp_path / "x.npy", x)
    torch.set_warn_always(True)
    try:
        assert linear_cka(np.load(tmp_path / "x.npy", mmap_mode=mode), y) == linear_cka(x, y)
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize("scale", [1, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_inputs_stay_as_they_are(name, path, dtype, scale):
    spaces = [(scale * space).astype(dtype) for space in related(17, 30, 6, 5)]
    before = [space.copy() for space in spaces]
    MEASURES[name](*spaces)
    measure_alignment(*spaces, MEASURES[name], permutations=1, resamples=1)
    assert all(np.array_equal(*pair) for pair in zip(spaces, before))


SCALES = [
    *((np.float32, scale) for scale in (1e20, 1e-20, 3e37, 1e-37)),
    (np.float16, 1e4),  # close to the largest number of float16
    *((np.float64, scale) for scale in (1e60, 1e-60)),
]


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
@pytest.mark.parametrize("name", CASES)
def test_a_scale_whose_squares_overflow_or_vanish_changes_nothing(name, path, dtype, scale):
    measured, plain = CASES[name]
    spaces = [space.astype(np.float64) / 2 for space in related(24, 40, 6, 5)]
    scaled = [(scale * space).astype(dtype) for space in spaces]
    if dtype == np.float16:  # which rounds
        spaces = [space.astype(np.float64) / scale for space in scaled]
    for x, y in (scaled, (scaled[0], spaces[1]), (spaces[0], scaled[1])):
        assert measured(x, y) == pytest.approx(plain(*spaces), abs=allowed(name, path, np.float32), rel=0)
    draws = {"permutations": 9, "resamples": 9, "show_progress_bar": False}
    [mine], [its] = (
        score_pairs(measured, [0.5], 40, *([torch.from_numpy(each)] for each in side), [(0, 0)], **draws)
        for side in (scaled, spaces)
    )
    assert dataclasses.astuple(mine)[1:] == pytest.approx(dataclasses.astuple(its)[1:], abs=1e-5)


@pytest.mark.parametrize("name", ["mutual_knn", "cknna"])
def test_lengths_of_single_items_change_no_cosine(name, path):
    x, y = (space.astype(np.float32) for space in related(25, 40, 6, 5))
    lengths = 10 ** np.random.default_rng(0).uniform(-18, 18, (40, 1)).astype(np.float32)
    assert MEASURES[name](x * lengths, y / lengths) == pytest.approx(MEASURES[name](x, y), abs=1e-5)


@pytest.mark.parametrize("row", [0, 0.1])
@pytest.mark.parametrize("name", CASES)
def test_an_item_of_equal_numbers_is_an_item(name, path, row):
    x, y = (space.astype(np.float32) for space in related(26, 40, 7, 5))
    x[11] = row
    found, plain = CASES[name]
    if name == "rsa":  # its correlations are 0
        distances = squareform(1 - np.corrcoef(np.delete(x, 11, 0)), checks=False)
        others = squareform(np.insert(np.insert(squareform(distances), 11, 1, 0), 11, 1, 1), checks=False)
        assert found(x, y) == pytest.approx(stats.spearmanr(others, pdist(y, "correlation")).statistic, abs=1e-3)
    elif row or name not in ("mutual_knn", "cknna"):
        assert found(x, y) == pytest.approx(plain(x.astype(np.float64), y.astype(np.float64)), abs=1e-4)
    else:  # all others are its nearest, alike
        assert found(x, y) == pytest.approx(found(np.delete(x, 11, 0), np.delete(y, 11, 0)), abs=0.06)


# What is refused

X, Y = related(20, 30, 3, 3)
REFUSED = [  # of every measure
    (X, Y[:29], "x has 30 items and y has 29: row i of both must be one item"),
    (np.ones_like(X), Y, "x is constant: all its 30 vectors are equal"),
    (X, np.zeros_like(Y), "y is constant: all its 30 vectors are equal"),
    *((X[:n], Y[:n], rf"at least \d+ items are needed, got {n}") for n in (0, 1, 3)),
    *(
        (X, np.ones(shape), f"y must be vectors .*got the shape {re.escape(str(shape))}")
        for shape in [(30,), (30, 0), ()]
    ),
    (X, np.ones((30, 2, 2)), "y must be vectors"),
    (X + 1j, Y, "x must hold real numbers, got complex128"),
    (torch.from_numpy(X + 1j), Y, "x must hold real numbers, got torch.complex128"),
    (X, Y.astype(str), "y must hold real numbers, got <U"),
    (X, Y.astype(object), "y must hold real numbers, got object"),
]


@pytest.mark.parametrize("name", CASES)
def test_spaces_that_cannot_be_compared_are_refused(name, path):
    for x, y, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            MEASURES[name](x, y)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_that_are_none_are_named(dtype, bad):
    x, y = (space.astype(dtype) for space in related(21, 30, 3, 4))
    spoiled = x.copy()
    spoiled[[17, 23], 1] = bad
    for name, found in MEASURES.items():
        for spaces, which in (((spoiled, y), "x"), ((y, spoiled), "y")):
            with pytest.raises(ValueError, match=rf"^{which}: NaN or infinity in 2 items, the first \[17, 23\]"):
                found(*spaces), name


@pytest.mark.parametrize("name", CASES)
def test_the_fewest_items(name):
    least = {"mutual_knn": 5, "cknna": 6}.get(name, 4)
    x, y = related(18, 12, 3, 4)
    assert math.isfinite(MEASURES[name](x[:least], y[:least]))
    with pytest.raises(ValueError, match=f"at least {least} items are needed, got {least - 1}"):
        MEASURES[name](x[: least - 1], y[: least - 1])
    for make in (MutualKNN, CKNNA):
        assert math.isfinite(make()(x, y)) and make().least == 12


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (RBFCKA, (0, -0.5, math.nan, math.inf), "bandwidth must be a positive number, got {}"),
        (SVCCA, (0, 1.01, math.nan), r"variance is a share in \(0, 1\], got {}"),
        (MutualKNN, (0,), "k must be at least 1, got {}"),
        (CKNNA, (-1,), "k must be at least 1, got {}"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, options, message):
    for option in options:
        with pytest.raises(ValueError, match=message.format(option)):
            make(option)


def test_a_measure_of_another_name_is_refused():
    with pytest.raises(ValueError, match="no measure is called 'ckaa'; there are cka, cka_biased, rbf_cka"):
        measure_alignment(*related(22, 30, 3, 4), "ckaa")


# Faults


@pytest.mark.parametrize("name", ["cka", "cka_biased", "cca", "svcca", "procrustes"])
def test_spaces_of_different_precision_are_measured(monkeypatch, name):
    x, y = related(23, 30, 6, 5)
    expected = MEASURES[name](x, y)
    monkeypatch.setattr(measure, "FEW", 0)
    assert MEASURES[name](x.astype(np.float32), y) == pytest.approx(expected, abs=1e-5)


def test_float32_spaces_of_low_rank_have_no_more_directions_among_many_items(monkeypatch):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 4)) @ rng.normal(size=(4, 8))).astype(np.float32)
    y = (x[:, :1] + rng.normal(size=(500, 10))).astype(np.float32)
    expected = cca(x, y)
    monkeypatch.setattr(measure, "FEW", 0)
    assert expected == pytest.approx(plain_cca(x.astype(np.float64), y.astype(np.float64)), abs=1e-5)
    assert cca(x, y) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("few", [1000, 0])
def test_equal_distances_share_a_rank(monkeypatch, few):
    monkeypatch.setattr(measure, "FEW", few)
    rng = np.random.default_rng(0)
    owner = rng.integers(1, 8, 60)
    x = linalg.hadamard(8)[owner] * rng.uniform(1, 9, (60, 1))
    y = linalg.hadamard(8)[owner] + rng.normal(size=(60, 8))
    # Of distances there are two: 0 within a kind, 1 between two, up to rounding.
    expected = stats.spearmanr(pdist(owner[:, None], "hamming"), pdist(y, "correlation")).statistic
    assert rsa(x, y) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ["cka", "rbf_cka", "rsa"])
def test_a_space_of_equal_distances_is_refused(name, path):
    with pytest.raises(ValueError, match=r"of x and y is not defined .*equally far"):
        MEASURES[name](np.eye(20), related(27, 20, 3, 3)[0])


@pytest.mark.parametrize("name", ["cka", "rbf_cka"])
def test_what_rounding_leaves_of_equal_distances_is_no_space(monkeypatch, name):
    monkeypatch.setattr(measure, "FEW", 0)
    for seed in range(20):
        with pytest.raises(ValueError, match="equally far"):
            MEASURES[name](rotation(seed, 20).astype(np.float32), related(27, 20, 3, 3)[0])


@pytest.mark.parametrize("scale", [1e150, 1e-150])
@pytest.mark.parametrize("name", ["cka", "cka_biased", "cca", "svcca", "procrustes"])
def test_sums_that_float64_cannot_hold_are_refused(monkeypatch, name, scale):
    monkeypatch.setattr(measure, "FEW", 0)
    x, y = related(28, 30, 6, 5)
    with pytest.raises(ValueError, match="too large or too small for squares in float64; divide them"):
        MEASURES[name](x * scale * 1e50 ** (1 if scale > 1 else -1), y)
