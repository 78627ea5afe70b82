"""Filters: each removes what it should and says how many; near-duplicates and leaks that were planted are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import make_prototypes, make_store, make_vectors, write_arrays

from freezealign.curation import (
    CaptionLength,
    EqualCaptions,
    Language,
    Leaks,
    NearDuplicates,
    Scoring,
    Similarity,
    StatedSimilarity,
    open_pool,
    score_pool,
)
from freezealign.curation.duplicates import first_of_kind
from freezealign.curation.filters import EqualIds, Filter, apply_filters, best_keys
from freezealign.curation.selection import candidate_rows
from freezealign.curation.top_k import as_keys
from freezealign.vectors import unit
from freezealign.words import count_words, plain

NO_KEYS, ONE_KEY = np.zeros((1, 0), np.uint64), np.ones((1, 1), np.uint64)


def kept(one, pool, rows=None, keys=NO_KEYS) -> list[int]:
    rows = np.arange(len(pool)) if rows is None else rows
    return rows[one.keep(pool, rows, keys)].tolist()


def pool_of(captions, **options):
    return open_pool(make_store(make_vectors(len(captions)), list(captions), **options))


def test_captions_count_in_words_of_any_script():
    pool = pool_of(["", "a", "a red car", "赤い車", "one two three four five"])
    assert kept(CaptionLength(2, 4), pool) == [2, 3]
    assert kept(CaptionLength(), pool) == [1, 2, 3, 4]


def test_caption_clearly_in_another_language_is_left_out():
    pytest.importorskip("py3langid")
    english, german = "The dog is sitting on the grass in front of the house", "Das ist ein rotes Auto vor dem Haus"
    pool = pool_of([english, german, "cat", ""])
    assert kept(Language(("en",)), pool) == [0, 2, 3]
    assert kept(Language(("de", "fr")), pool) == [1, 2, 3]
    with pytest.raises(ValueError, match=r"no language \['xx'\]"):
        Language(("en", "xx"))


def test_stated_similarity_counts_and_unknown_is_too_little(tmp_path):
    pool = open_pool(write_arrays(tmp_path, make_vectors(3), 1, similarity=[0.31, None, 0.1]))
    assert kept(StatedSimilarity(0.3), pool) == [0]
    with pytest.raises(ValueError, match="does not tell the similarity"):
        StatedSimilarity(0.3).check(pool_of(["a"]))


def test_similarity_is_the_cosine_of_two_pools():
    images, texts = make_vectors(30), make_vectors(30, seed=3)
    one = Similarity(0.2, open_pool(make_store(images)), open_pool(make_store(texts)))
    expected = (unit(images) * unit(texts)).sum(1) >= 0.2
    assert kept(one, one.image) == torch.nonzero(expected).flatten().tolist()
    with pytest.raises(ValueError, match="of the same pairs in one space"):
        Similarity(0.2, one.image, open_pool(make_store(make_vectors(29))))


def test_best_of_equal_captions_stays():
    pool = pool_of(["A red car!", "a  red, CAR", "a blue car", "", "", "\uff41 red car"])
    keys = as_keys(np.array([[0.1, 0.3, 0.2, 0.1, 0.1, 0.3]]), np.arange(6)[None])
    assert kept(EqualCaptions(), pool, keys=keys) == [1, 2, 3, 4]
    assert plain("\uff21  Straße,\tred!") == "a strasse red"


def test_best_of_equal_ids_stays():
    pool = pool_of("abc", ids=["x", "y", "x"])
    assert kept(EqualIds(), pool, keys=as_keys(np.array([[0.1, 0.3, 0.2]]), np.arange(3)[None])) == [1, 2]


def test_vowel_signs_tell_words_apart():
    assert plain("लड़का") != plain("लड़की")
    assert plain("กิน") != plain("กัน")
    assert plain("C++") != plain("C")
    assert count_words("नमस्ते दुनिया!") == 2
    assert count_words("!!! --- …") == 0


@pytest.mark.parametrize("bounds", [(3, 2), (1, 0), (-1, None)])
def test_length_that_no_caption_has_is_refused(bounds):
    with pytest.raises(ValueError, match="no caption has at least"):
        CaptionLength(*bounds)


def test_threshold_is_a_cosine():
    pool = pool_of("ab")
    for make in (lambda: NearDuplicates(pool, 95), lambda: Leaks({"t": pool}, pool, 1.5)):
        with pytest.raises(ValueError, match="a threshold is a cosine"):
            make()


def test_vectors_of_other_pairs_are_refused():
    pool, other = pool_of("abc"), pool_of("ab")
    for one in (NearDuplicates(other), Leaks({"t": pool}, other), Similarity(0, other, other)):
        with pytest.raises(ValueError, match="2 pairs"):
            one.check(pool)


def test_test_set_without_usable_vectors_is_an_error():
    pool, vectors = pool_of("abc"), make_vectors(3)
    vectors[1, 2] = np.nan
    with pytest.raises(ValueError, match="1 vectors of the test sets"):
        Leaks({"t": open_pool(make_store(vectors))}, pool).request()
    with pytest.raises(ValueError, match="no test sets"):
        Leaks({}, pool)


def test_every_caption_of_a_test_item_counts():
    from freezealign.features.columns import Column

    vectors = make_vectors(4, width=32)
    store = make_store(vectors)
    columns = store.columns | {f"items/{m}": Column([np.array([2, 2], np.int32)]) for m in ("image", "text")}
    columns["items/ids.lengths"] = Column([store.columns["items/ids.lengths"].all()[:2]])
    tests = open_pool(type(store)(store.origins, columns), "text")
    pool = open_pool(make_store(vectors), "text")
    assert kept(Leaks({"two captions": tests}, pool), pool) == []


def test_damaged_file_of_a_filter_is_made_again(tmp_path):
    pool = pool_of("abcdefgh")
    first = apply_filters([Counted()], pool, np.arange(8), NO_KEYS, tmp_path)[0]
    (tmp_path / "0.safetensors").write_bytes((tmp_path / "0.safetensors").read_bytes()[:-9])
    np.testing.assert_array_equal(apply_filters([Counted()], pool, np.arange(8), NO_KEYS, tmp_path)[0], first)


def test_best_key_of_a_candidate_is_over_all_lists():
    keys = as_keys(np.array([[0.9, 0.5], [0.7, 0.1]]), np.array([[3, 8], [8, 5]]))
    assert best_keys(np.array([3, 8]), keys).tolist() == [keys[0, 0], keys[1, 0]]


def reference(units: np.ndarray, threshold: float) -> list[bool]:
    keep: list[bool] = []
    for i, own in enumerate(units):
        keep.append(all(not keep[j] or own @ units[j] < threshold for j in range(i)))
    return keep


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.7, 0.95]), st.sampled_from([3, 7, 100]))
def test_kept_are_those_unlike_all_kept_before(n, seed, threshold, tile):
    units = unit(make_vectors(n, seed, 3))
    assert first_of_kind(units, threshold, tile).tolist() == reference(units.double().numpy(), threshold)


def test_planted_duplicates_are_found(tmp_path):
    """Each of ten pictures comes three times, slightly changed; of each, one that suits some concept stays."""
    vectors = np.repeat(make_vectors(10, width=32), 3, 0)
    vectors += 0.01 * make_vectors(30, 5, 32)
    pool = open_pool(make_store(vectors))
    scores = score_pool(Scoring([pool], [make_prototypes(width=32)], 30), tmp_path / "s", show_progress_bar=False)
    rows, report = apply_filters([NearDuplicates(pool)], pool, candidate_rows(scores.keys), scores.keys, tmp_path)
    assert (rows // 3).tolist() == list(range(10))
    assert [(entry["filter"], entry["candidates"], entry["removed"]) for entry in report] == [
        ("near-duplicates", 30, 20)
    ]


def test_best_of_a_concept_stays_of_near_duplicates():
    vectors = make_vectors(1, width=8).repeat(3, 0) + 1e-3 * make_vectors(3, 2, 8)
    pool = open_pool(make_store(vectors))
    keys = np.sort(as_keys(np.array([0.2, 0.9, 0.5]), np.arange(3)))[::-1][None]
    assert kept(NearDuplicates(pool), pool, keys=keys) == [1]


def test_planted_test_images_are_removed():
    vectors, tests = make_vectors(50, width=32), make_vectors(8, 7, 32)
    planted = [3, 20, 21, 49]
    vectors[planted] = 5 * (tests[[0, 2, 2, 7]] + 0.01 * make_vectors(4, 9, 32))
    pool = open_pool(make_store(vectors))
    leaks = Leaks({"first": open_pool(make_store(tests[:4])), "second": open_pool(make_store(tests[4:]))}, pool)
    assert kept(leaks, pool) == sorted(set(range(50)) - set(planted))
    assert leaks.request()["tests"] == {"first": 4, "second": 4}
    with pytest.raises(ValueError, match="make both with one encoder"):
        Leaks({"narrow": open_pool(make_store(make_vectors()))}, pool)


class Counted(Filter):
    """Keeps the lower half, and counts how often it is asked."""

    name = "half"

    def __init__(self) -> None:
        self.asked = 0

    def request(self):
        return {}

    def keep(self, pool, rows, keys):
        self.asked += 1
        return rows < np.median(rows)


def test_filters_that_were_done_are_not_done_again(tmp_path):
    pool, rows = pool_of("abcdefgh"), np.arange(8)
    filters = [Counted(), Counted()]
    first = apply_filters(filters, pool, rows, NO_KEYS, tmp_path)
    again = apply_filters(filters, pool, rows, NO_KEYS, tmp_path)
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0].tolist(), first[1]) == ([0, 1], again[1])
    assert [entry["removed"] for entry in first[1]] == [4, 2]
    assert [one.asked for one in filters] == [1, 1]


@pytest.mark.parametrize(("rows", "keys"), [(np.arange(6), ONE_KEY), (np.arange(8), NO_KEYS)])
def test_filter_is_done_again_for_other_candidates(rows, keys, tmp_path):
    pool = pool_of("abcdefgh")
    apply_filters([Counted()], pool, np.arange(8), ONE_KEY, tmp_path)
    other = Counted()
    apply_filters([other], pool, rows, keys, tmp_path)
    assert other.asked == 1


def test_nothing_left_passes_through_every_filter(tmp_path):
    pool, none = pool_of("abc"), np.zeros(0, np.int64)
    filters = [CaptionLength(), EqualCaptions(), EqualIds(), NearDuplicates(pool), Leaks({"t": pool}, pool)]
    filters += [Similarity(0.0, pool, pool)]
    rows, report = apply_filters(filters, pool, none, NO_KEYS, tmp_path)
    assert len(rows) == 0
    assert [entry["removed"] for entry in report] == [0] * len(filters)
