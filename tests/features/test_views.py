"""Augmented views: further rows of an image, drawn by its position alone."""

from __future__ import annotations

import numpy as np
import pytest
from jobs import extract, files_of, make_model, make_pairs
from PIL import Image

from freezealign.images import SMALLEST_CROP, random_view

VIEWS = 4


@pytest.fixture(scope="module")
def store():
    """Four views of every image, in memory."""
    return extract(None, views=VIEWS)


@pytest.fixture(scope="module")
def plain():
    return extract(None)


def rows_of(store, modality="image") -> np.ndarray:
    features = store[modality]
    return features.load(np.arange(len(features)))["token_embeddings"].float().numpy()


def batch_of(store, index, choice):
    inputs, _ = store.load(np.asarray(index), np.asarray(choice))
    return inputs


def test_every_image_has_so_many_rows(store, plain):
    assert store.counts("image").tolist() == [VIEWS] * 55
    assert len(store["image"]) == 55 * VIEWS
    assert len(store) == len(plain) == 55


def test_the_first_row_is_the_image_itself(store, plain):
    np.testing.assert_array_equal(rows_of(store)[::VIEWS], rows_of(plain))


def test_views_differ_from_the_image(store):
    rows = rows_of(store).reshape(55, VIEWS, -1)
    same = (rows[:, 1:] == rows[:, :1]).all(-1)
    assert same.mean() < 0.2  # a tiny picture may come out as itself


def test_two_views_differ_from_each_other(store):
    rows = rows_of(store).reshape(55, VIEWS, -1)
    assert (rows[:, 1] == rows[:, 2]).all(-1).mean() < 0.2


def test_equal_images_at_two_positions_get_different_views():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    rows = rows_of(extract(None, [(image, "a")] * 2, views=2)).reshape(2, 2, -1)
    np.testing.assert_array_equal(rows[0, 0], rows[1, 0])
    assert (rows[0, 1] != rows[1, 1]).any()


def test_views_are_the_same_every_time(store):
    np.testing.assert_array_equal(rows_of(extract(None, views=VIEWS)), rows_of(store))


def test_views_do_not_depend_on_batches_or_shards(store):
    for options in ({"batch_size": 7}, {"shard_size": 4}, {"batch_size": 60, "shard_size": 60}):
        np.testing.assert_array_equal(rows_of(extract(None, views=VIEWS, **options)), rows_of(store))


def test_captions_and_ids_stay_as_they_are(store, plain):
    assert store.ids == plain.ids
    assert store.counts("text").tolist() == plain.counts("text").tolist()
    every = np.arange(len(plain["text"]))
    assert store["text"].captions(every) == plain["text"].captions(every)
    np.testing.assert_array_equal(rows_of(store, "text"), rows_of(plain, "text"))


def test_training_draws_every_view(store):
    rows = rows_of(store).reshape(55, VIEWS, -1)
    for view in range(VIEWS):
        batch = batch_of(store, [3, 17], [(view + 0.01) / VIEWS, (view + 0.99) / VIEWS])
        np.testing.assert_array_equal(batch["image"]["token_embeddings"].flatten(1), rows[[3, 17], view])


def test_training_draws_every_view_with_every_caption(store):
    rng, item, drawn = np.random.default_rng(0), 5, set()  # three captions of one length
    views, captions = rows_of(store.select([item])).reshape(VIEWS, -1), rows_of(store.select([item]), "text")
    for choice in rng.random(300):
        batch = batch_of(store, [item], [choice])
        view = (views == batch["image"]["token_embeddings"].flatten().numpy()).all(-1).argmax()
        caption = (captions == batch["text"]["token_embeddings"].numpy()).all((1, 2)).argmax()
        drawn.add((int(view), int(caption)))
    assert len(drawn) == len(np.unique(views, axis=0)) * 3


def test_interrupted_extraction_gives_the_same_views(tmp_path):
    extract(tmp_path / "whole", views=2)
    with pytest.raises(RuntimeError, match="the data ended at pair 30: KeyError"):
        extract(tmp_path / "store", interrupted(), views=2)
    extract(tmp_path / "store", views=2)
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


def interrupted():
    yield from make_pairs()[:30]
    raise KeyError("gone")


@pytest.mark.parametrize("views", [0, -1])
def test_fewer_than_one_view_is_refused(views):
    with pytest.raises(ValueError, match=f"views must be at least 1, got {views}"):
        extract(None, views=views)


def test_selected_items_keep_all_their_views(store):
    rows = rows_of(store).reshape(55, VIEWS, -1)
    np.testing.assert_array_equal(rows_of(store.select([9, 2])).reshape(2, VIEWS, -1), rows[[9, 2]])


def test_a_view_keeps_the_aspect_ratio_and_half_of_the_area():
    rng, image = np.random.default_rng(0), Image.new("RGB", (200, 100))
    sizes = np.array([random_view(image, rng).size for _ in range(200)])
    assert (np.abs(sizes[:, 0] / 2 - sizes[:, 1]) <= 1).all()
    area = sizes.prod(1) / 20_000
    assert area.min() >= SMALLEST_CROP * 0.98
    assert area.max() <= 1


def test_the_smallest_picture_has_views_too():
    assert random_view(Image.new("RGB", (1, 1)), np.random.default_rng(0)).size == (1, 1)


def test_embedding_of_the_rows_is_that_of_the_images(store):
    model = make_model()
    images = [pair["image"] for pair in make_pairs() if pair["image"]]
    np.testing.assert_allclose(model.encode(store["image"])[::VIEWS], model.encode(images), atol=1e-5)
