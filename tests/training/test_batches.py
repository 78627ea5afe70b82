"""Batches: windows, ranks and interrupted epochs change where rows come from, never which rows come."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from freezealign import ContrastiveLoss, FeatureStore, FitArguments, FreezeAlign, FrozenEncoder
from freezealign.data.reader import PairReader
from freezealign.encoders.callable import CallableEncoder
from freezealign.training import batches as module
from freezealign.training import order
from freezealign.training.batches import CachedBatches, OnlineBatches
from freezealign.training.batches import TrainingBatch as Batch
from freezealign.training.objective import Objective

QUIET = {"show_progress_bar": False}
LETTERS = "abcdefghijklmnop"


def numbers(items) -> np.ndarray:
    """An encoder of numbers: the number itself, and how it looks."""
    values = np.array(items, np.float32)
    return np.stack([values, np.sin(values)], axis=1)


def words(items) -> np.ndarray:
    """An encoder of texts such as "12 b": the number, and the place of the letter in the alphabet."""
    split = [item.split() for item in items]
    return np.array([[float(number), float(LETTERS.index(letter))] for number, letter in split], np.float32)


@pytest.fixture
def model() -> FreezeAlign:
    encoders = [
        FrozenEncoder(CallableEncoder(numbers, "number", 2)),
        FrozenEncoder(CallableEncoder(words, "text", 2), "text"),
    ]
    return FreezeAlign(encoders, recipe="token", dim=4, seed=0, device="cpu")


def pairs_of(n: int, captions: int = 1, first: int = 0) -> list:
    """Pairs of a number and its captions, as many as said."""
    return [(i, [f"{i} {letter}" for letter in LETTERS[:captions]]) for i in range(first, first + n)]


@pytest.fixture
def small_windows(monkeypatch) -> None:
    """Make a store of 300 pairs larger than what is held in memory, by far."""
    monkeypatch.setattr(module, "WINDOW_BYTES", 2000)
    monkeypatch.setattr(order, "CHUNK", 8)


def extract(model, pairs, path=None, **options) -> FeatureStore:
    if path is not None:
        options = {"dtype": "float32", "shard_size": 50, **options}
    return model.extract_features(pairs, path, **options, **QUIET)


@pytest.fixture
def folder_store(model, tmp_path, small_windows) -> FeatureStore:
    """300 pairs on disk, each with three captions, to be read in windows."""
    return extract(model, pairs_of(300, captions=3), tmp_path / "store")


def rows(batch: Batch) -> dict[str, torch.Tensor]:
    """The vectors of a batch, which of these encoders are one token a row."""
    return {key: features["sentence_embedding"] if "sentence_embedding" in features else
            features["token_embeddings"][:, 0] for key, features in batch.inputs.items()}  # fmt: skip


def assert_same_batches(found: list[Batch], expected: list[Batch]) -> None:
    assert [batch.number for batch in found] == [batch.number for batch in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.size == other.size
        mine, theirs = rows(one), rows(other)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert (one.owners is None) == (other.owners is None)
        assert all(torch.equal(one.owners[key], other.owners[key]) for key in one.owners or ())


def captions_of(batch: Batch) -> list[tuple[int, int]]:
    """(number, letter) of every text of a batch."""
    return [(int(number), int(letter)) for number, letter in rows(batch)["text"].tolist()]


# Windows


def test_windows_give_the_rows_that_lie_at_their_positions(folder_store):
    batches = CachedBatches([folder_store], 16, seed=5)
    assert not batches.in_memory
    draws = [draw for window in batches.order.epoch(2) for draw in window]
    for batch, draw in zip(batches.epoch(2), draws, strict=True):
        inputs, _ = folder_store.load(draw.positions, draw.row_draws)
        assert_same_batches([batch], [batch._replace(inputs=inputs)])
        assert rows(batch)["number"][:, 0].tolist() == draw.positions.tolist()


def test_windows_of_a_store_are_small(folder_store, monkeypatch):
    """What is read into memory at once is a fraction of the store."""
    sizes = []
    original = FeatureStore.resident
    monkeypatch.setattr(
        FeatureStore, "resident", lambda store, index=None: sizes.append(len(index)) or original(store, index)
    )
    list(CachedBatches([folder_store], 4, seed=0).epoch(1))
    assert len(sizes) > 5 and max(sizes) < 60


def test_every_pair_of_a_store_in_windows_comes_once(folder_store):
    found = [n for batch in CachedBatches([folder_store], 12, 0).epoch(1) for n in rows(batch)["number"][:, 0].tolist()]
    assert sorted(found) == list(range(300))


def test_selection_of_a_store_that_fits_is_read_into_memory(model, tmp_path, monkeypatch):
    """A selection shares the columns of the whole store, but only its own rows count."""
    store = extract(model, pairs_of(300), tmp_path / "store")
    monkeypatch.setattr(module, "WINDOW_BYTES", store.nbytes // 10)
    chosen = CachedBatches([store.select(np.arange(100, 125))], 5, 0)
    assert chosen.in_memory
    assert sorted(n for batch in chosen.epoch(1) for n in rows(batch)["number"][:, 0].tolist()) == list(range(100, 125))
    assert not CachedBatches([store], 5, 0).in_memory


def test_store_in_windows_trains_as_its_data_in_memory_but_for_the_order(model, folder_store):
    """All pairs in one batch: whatever the order, the loss is the same."""
    other = copy.deepcopy(model)
    options = {"schedule": "paper", "epochs": 1, "batch_size": 300, **QUIET}
    for fitted in (model, other):
        for block in fitted.modules():
            if isinstance(block, torch.nn.Dropout):
                block.p = 0.0
    one_caption = [(i, [captions[0]]) for i, captions in pairs_of(300)]
    store = extract(model, one_caption)
    windowed = model.fit(folder_store.select(slice(None)), captions=3, **options).losses
    assert windowed == pytest.approx(
        other.fit(extract(other, pairs_of(300, 3)), captions=3, **options).losses, abs=1e-5
    )
    assert windowed != pytest.approx(other.fit(store, **options).losses, abs=1e-5)


# Ranks


@pytest.mark.parametrize("captions", [1, 2])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_ranks_share_each_batch(model, folder_store, captions, where):
    store = folder_store if where == "disk" else extract(model, pairs_of(300, 3))
    whole = CachedBatches([store], 12, 0, captions=captions).epoch(1)
    parts = [CachedBatches([store], 12, 0, captions=captions, rank=rank, ranks=3).epoch(1) for rank in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for key, vectors in rows(batch).items():
            assert torch.equal(torch.cat([rows(share)[key] for share in shares]), vectors)
            if captions > 1:
                assert torch.equal(torch.cat([share.owners[key] for share in shares]), batch.owners[key])


def test_batch_that_ranks_cannot_share_evenly_is_refused(model):
    with pytest.raises(ValueError, match="a batch of 10 pairs cannot be shared by 3 processes evenly"):
        CachedBatches([extract(model, pairs_of(20))], 10, 0, ranks=3)


# Starting in the middle of an epoch


@pytest.mark.parametrize("start", [0, 1, 6, 7, 24, 25])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_epoch_of_stores_starts_where_it_is_told(model, folder_store, where, start):
    store = folder_store if where == "disk" else extract(model, pairs_of(300, 3))
    batches = CachedBatches([store], 12, 0)
    assert_same_batches(list(batches.epoch(3, start)), list(batches.epoch(3))[start:])


@pytest.mark.parametrize("start", [0, 1, 4, 5])
@pytest.mark.parametrize("loader", [False, True], ids=["list", "loader"])
def test_epoch_of_data_starts_where_it_is_told(model, loader, start):
    data = pairs_of(20, captions=3)
    if loader:
        data = DataLoader(data, batch_size=4, collate_fn=lambda batch: tuple(map(list, zip(*batch))))
    batches = OnlineBatches(PairReader(data, list(model.encoders)), model.encoders, 4, seed=0, strict=False)
    found = [batch.inputs for batch in batches.epoch(3, start)]
    assert found == [batch.inputs for batch in batches.epoch(3)][start:]
    assert [batch.number for batch in batches.epoch(3, start)] == list(range(start, 5))


# Captions


def test_captions_of_a_pair_are_in_a_batch_together_with_their_owner(model):
    store = extract(model, pairs_of(40, captions=3))
    for batch in CachedBatches([store], 8, 0, captions=2).epoch(1):
        owner = [int(number) for number in rows(batch)["number"][:, 0]]
        assert batch.owners["number"].tolist() == owner
        assert batch.owners["text"].tolist() == [number for number, _ in captions_of(batch)]
        assert sorted(batch.owners["text"].tolist()) == sorted(owner * 2)


def test_captions_are_drawn_without_repetition_where_there_are_enough(model):
    store = extract(model, pairs_of(40, captions=5))
    for batch in CachedBatches([store], 8, 0, captions=5).epoch(1):
        assert len(set(captions_of(batch))) == 8 * 5


def test_pair_with_fewer_captions_gives_some_twice(model):
    store = extract(model, [(i, [f"{i} {letter}" for letter in LETTERS[: 1 + i % 3]]) for i in range(30)])
    for batch in CachedBatches([store], 10, 0, captions=3).epoch(1):
        found = captions_of(batch)
        for number in {number for number, _ in found}:
            letters = sorted(letter for n, letter in found if n == number)
            assert letters == {0: [0, 0, 0], 1: letters, 2: [0, 1, 2]}[number % 3]
            assert set(letters) == set(range(1 + number % 3))


def test_every_caption_has_its_turn_equally_often(model):
    store = extract(model, pairs_of(50, captions=4))
    batches = CachedBatches([store], 10, 0)
    letters = [letter for epoch in range(1, 41) for batch in batches.epoch(epoch) for _, letter in captions_of(batch)]
    assert np.abs(np.bincount(letters) - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def loss_by_hand(images, texts, image_ids, text_ids, temperature) -> float:
    """Symmetric InfoNCE with all rows of one id as positives, in plain loops."""
    logits = (images @ texts.T / temperature).double().tolist()
    sides = [(logits, image_ids, text_ids), (list(map(list, zip(*logits))), text_ids, image_ids)]
    losses = []
    for table, own, others in sides:
        rows = []
        for row, name in zip(table, own):
            total = np.logaddexp.reduce(row)
            rows.append(np.mean([total - logit for logit, other in zip(row, others) if other == name]))
        losses.append(np.mean(rows))
    return float(np.mean(losses))


def objective_of(model, **options) -> Objective:
    return Objective(model.eval(), FitArguments(structure_weight=0.0, **options))


def test_captions_of_one_item_are_positives_of_each_other(model):
    store = extract(model, pairs_of(40, captions=3))
    batch = next(CachedBatches([store], 8, 0, captions=3).epoch(1))
    images, texts = model(batch.inputs).values()
    numbers_of = [int(number) for number in rows(batch)["number"][:, 0]]
    by_hand = loss_by_hand(images, texts, numbers_of, [number for number, _ in captions_of(batch)], 0.07)
    assert objective_of(model)(batch.inputs, batch.owners).item() == pytest.approx(by_hand, abs=1e-5)
    apart = ContrastiveLoss()(images.repeat_interleave(3, 0), texts, model.logit_scale).item()
    assert by_hand != pytest.approx(apart, abs=1e-3)


def test_captions_without_a_cache_are_refused(model):
    with pytest.raises(ValueError, match=r"captions=2 needs cached features.*cache_features=True"):
        model.fit(pairs_of(8, 2), captions=2, cache_features=False, schedule="paper", **QUIET)


# Mixing stores


def test_stores_are_mixed_by_weight(model, tmp_path, small_windows):
    stores = [
        extract(model, pairs_of(200), tmp_path / "first"),
        extract(model, pairs_of(200, first=1000), tmp_path / "second"),
    ]
    batches = CachedBatches(stores, 10, 0, weights=[1.0, 0.5])
    assert not batches.in_memory
    found = [n for epoch in range(1, 9) for batch in batches.epoch(epoch) for n in rows(batch)["number"][:, 0].tolist()]
    counts = np.bincount(np.array(found, int), minlength=1200)
    assert counts[:200].mean() == pytest.approx(2 * counts[1000:].mean(), rel=0.1)
    assert counts[:200].min() >= 1 and counts[1000:].min() >= 1 and counts[200:1000].sum() == 0


def sigmoid_by_hand(images, texts, image_ids, text_ids, scale) -> float:
    """The sigmoid loss with all rows of one id as positives, in plain loops."""
    logits = scale(images @ texts.T).double().tolist()
    signs = [[1 if one == other else -1 for other in text_ids] for one in image_ids]
    return sum(np.logaddexp(0, -z * x) for row, zs in zip(logits, signs) for x, z in zip(row, zs)) / len(images)


@pytest.mark.parametrize("captions", [1, 2])
@pytest.mark.parametrize("weight", [2.0, 0.7])
def test_pair_that_is_drawn_twice_is_no_negative_of_itself(model, weight, captions):
    stores = [extract(model, pairs_of(10, captions)), extract(model, pairs_of(10, captions, first=100))]
    batches = CachedBatches(stores, 14, 0, weights=[1.0, weight], captions=captions)
    model.logit_scale.add_bias_(-1.0)
    repeated = 0
    for epoch in range(1, 11):
        for batch in batches.epoch(epoch):
            names = [int(number) for number in rows(batch)["number"][:, 0]]
            repeated += len(set(names)) < len(names)
            images, texts = model(batch.inputs).values()
            by_hand = sigmoid_by_hand(
                images, texts, names, [number for number, _ in captions_of(batch)], model.logit_scale
            )
            loss = objective_of(model, loss="sigmoid")(batch.inputs, batch.owners)
            assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert repeated


def test_weights_need_a_store_each(model):
    store = extract(model, pairs_of(10))
    with pytest.raises(ValueError, match="3 weights for 2 feature stores"):
        model.fit([store, store], weights=(1.0, 1.0, 2.0), schedule="paper", **QUIET)


def test_stores_of_other_encoders_are_not_mixed(model):
    def shifted(items):
        return numbers(items) + 1

    others = [
        FrozenEncoder(CallableEncoder(shifted, "number", 2)),
        FrozenEncoder(CallableEncoder(words, "text", 2), "text"),
    ]
    stores = [extract(m, pairs_of(10)) for m in (model, FreezeAlign(others, recipe="token", dim=4, device="cpu"))]
    with pytest.raises(
        ValueError, match=r"number features were made by another encoder.*their encoder is.*the model's is"
    ):
        CachedBatches(stores, 4, 0)


def test_stores_of_other_dtypes_are_not_mixed(model, tmp_path):
    stores = [extract(model, pairs_of(10), tmp_path / dtype, dtype=dtype) for dtype in ("float16", "float32")]
    with pytest.raises(ValueError, match=r"stores that are mixed need equal columns.*float16.*float32"):
        CachedBatches(stores, 4, 0)


# Without a cache


def test_image_and_caption_are_chosen_apart_where_there_are_several_of_both(model):
    """One random number makes both choices, so it must not make the same choice twice."""
    numbers_of, texts = [[i, i + 100] for i in range(40)], [[f"{i} a", f"{i} b"] for i in range(40)]
    loader = DataLoader(
        range(40), 20, collate_fn=lambda batch: tuple([part[i] for i in batch] for part in (numbers_of, texts))
    )
    for batches in (
        CachedBatches([extract(model, loader)], 20, seed=0),
        OnlineBatches(PairReader(loader, list(model.encoders)), model.encoders, 20, seed=0, strict=False),
    ):
        chosen = set()
        for batch in batches.epoch(1):
            inputs = (
                batch.inputs
                if isinstance(batches, CachedBatches)
                else {key: model.encoders[key](features) for key, features in batch.inputs.items()}
            )
            found = rows(batch._replace(inputs=inputs))
            chosen |= set(zip((found["number"][:, 0] >= 100).tolist(), found["text"][:, 1].tolist()))
        assert len(chosen) == 4


def test_batch_size_that_is_not_the_uncached_loaders_is_refused(model):
    loader = DataLoader(pairs_of(20), batch_size=4, collate_fn=lambda batch: tuple(map(list, zip(*batch))))
    with pytest.raises(ValueError, match=r"batch_size=10, but without a cache the DataLoader keeps its own 4"):
        model.fit(loader, batch_size=10, cache_features=False, schedule="paper", **QUIET)
