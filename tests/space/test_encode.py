from __future__ import annotations

import contextlib
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freezealign import FreezeAlign, FrozenEncoder
from freezealign.batch import to_device
from freezealign.inputs import InputError
from freezealign.prefetch import prefetch
from freezealign.space.encode import Group, run_groups

CPU = torch.device("cpu")


class Numbers:
    """A source whose row i is the number i."""

    def __init__(self, lengths: list[int]) -> None:
        self.sizes, self.loaded = np.array(lengths, dtype=np.int64), []

    def __len__(self) -> int:
        return len(self.sizes)

    def lengths(self) -> np.ndarray:
        return self.sizes

    def load(self, index: np.ndarray) -> dict:
        self.loaded.append([int(row) for row in index])
        return {"row": torch.as_tensor(index), "kept": "as it is"}


def run(source, forward=lambda batch: batch["row"].tolist(), batch_size: int = 2) -> list:
    """Return one result a row, in the order of the source."""
    groups, found = {"text": Group(source, np.arange(len(source)))}, {}
    for positions, results in run_groups(groups, lambda name, batch: forward(batch), batch_size, CPU, False):
        found |= zip(positions.tolist(), results)
    return [found[row] for row in range(len(source))]


def background_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("freezealign-prefetch")]


def wait_until(condition, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def finishes(action, seconds: float = 5.0) -> bool:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


@pytest.fixture(autouse=True)
def no_thread_left_over():
    yield
    assert wait_until(lambda: not background_threads()), "a background thread outlived its test"


# prefetch


@given(st.lists(st.none() | st.integers()), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_prefetch_yields_every_element_in_order(elements, depth):
    assert list(prefetch(iter(elements), depth)) == elements


def test_prefetch_computes_in_another_thread():
    def names():
        yield threading.current_thread().name

    assert next(prefetch(names())) != threading.current_thread().name


def test_prefetch_works_ahead_while_the_consumer_is_busy():
    ahead = threading.Event()

    def elements():
        yield 1
        ahead.set()
        yield 2

    iterator = prefetch(elements())
    next(iterator)
    assert ahead.wait(5)
    iterator.close()


def test_prefetch_stays_within_its_depth():
    drawn = []

    def elements():
        for number in range(1000):
            drawn.append(number)
            yield number

    iterator = prefetch(elements(), depth=2)
    next(iterator)
    time.sleep(0.3)
    assert len(drawn) <= 1 + 2 + 1  # taken, waiting in the queue, waiting to enter it
    iterator.close()


def test_prefetch_raises_the_error_after_the_elements_before_it():
    def elements():
        yield 1
        yield 2
        raise KeyError("third")

    iterator = prefetch(elements())
    assert [next(iterator), next(iterator)] == [1, 2]
    with pytest.raises(KeyError, match="third"):
        next(iterator)


def test_prefetch_raises_an_error_even_when_the_queue_is_full():
    def elements():
        yield from range(2)
        raise ValueError("late")

    iterator = prefetch(elements(), depth=1)
    time.sleep(0.3)
    assert next(iterator) == 0
    time.sleep(0.3)
    assert next(iterator) == 1
    with pytest.raises(ValueError, match="late"):
        next(iterator)


def test_prefetch_can_yield_an_exception_object_as_an_element():
    error = ValueError("an element, not a failure")
    assert list(prefetch([error])) == [error]


def test_closing_early_stops_the_thread_that_waits_for_room():
    iterator = prefetch(range(1000), depth=1)
    next(iterator)
    assert background_threads()
    assert finishes(iterator.close)
    assert not background_threads()


def test_leaving_a_loop_early_stops_the_thread():
    def consume():
        for number in prefetch(range(1000)):
            if number == 3:
                break

    assert finishes(consume)
    assert wait_until(lambda: not background_threads())


def test_an_error_in_the_consumer_stops_the_thread():
    def consume():
        with contextlib.suppress(RuntimeError):
            for _ in prefetch(range(1000)):
                raise RuntimeError("out of memory")

    assert finishes(consume)
    assert wait_until(lambda: not background_threads())


def test_an_iterator_that_is_never_read_starts_no_thread():
    prefetch(range(1000))
    assert not background_threads()


def test_several_prefetches_can_be_nested():
    inner = prefetch(iter(range(50)))
    assert list(prefetch(number * 2 for number in inner)) == [number * 2 for number in range(50)]


# run_groups


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_results_come_back_in_the_order_of_the_source(lengths, batch_size):
    assert run(Numbers(lengths), batch_size=batch_size) == list(range(len(lengths)))


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_every_row_is_loaded_once_and_longer_rows_come_first(lengths, batch_size):
    source = Numbers(lengths)
    run(source, batch_size=batch_size)
    rows = [row for batch in source.loaded for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)


@given(st.integers(0, 40), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_every_batch_but_the_last_is_full(count, batch_size):
    source = Numbers([0] * count)
    run(source, batch_size=batch_size)
    sizes = [len(batch) for batch in source.loaded]
    assert all(size == batch_size for size in sizes[:-1]) and sum(sizes) == count


def test_nothing_gives_nothing():
    assert run(Numbers([])) == []


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused_with_its_value(batch_size):
    with pytest.raises(ValueError, match=f"at least 1, got {batch_size}"):
        run(Numbers([1, 2]), batch_size=batch_size)


def test_an_error_in_the_model_is_raised_and_the_thread_stops():
    def fail(batch):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run(Numbers([1] * 50), fail)


def test_an_error_while_reading_is_raised():
    class Broken(Numbers):
        def load(self, index):
            raise InputError("item 0: broken")

    with pytest.raises(InputError, match="item 0: broken"):
        run(Broken([1, 2]))


def test_what_is_no_tensor_passes_to_the_model_as_it_is():
    assert run(Numbers([1]), lambda batch: [batch["kept"]]) == ["as it is"]


def test_only_tensors_are_moved_to_the_device():
    moved = to_device({"x": torch.zeros(2), "grid": (1, 2)}, torch.device("meta"))
    assert moved["x"].device.type == "meta" and moved["grid"] == (1, 2)


# What encode makes of it


@pytest.fixture
def heard() -> list[list[str]]:
    return []


@pytest.fixture
def listening_model(heard) -> FreezeAlign:
    def lengths(items: list[str]) -> np.ndarray:
        heard.append(list(items))
        return np.array([[len(item), 1] for item in items], dtype=np.float32)

    encoder = FrozenEncoder(lengths, "text")
    heard.clear()
    return FreezeAlign([encoder], dim=8, seed=0, device="cpu")


def test_texts_are_batched_longest_first(listening_model, heard):
    listening_model.encode(["a", "bbbb", "cc", "ddd"], batch_size=2)
    assert heard == [["bbbb", "ddd"], ["cc", "a"]]


def test_the_prompt_is_put_in_front_of_every_text(listening_model, heard):
    listening_model.encode(["cat", "dogs"], prompt="a photo of a ")
    assert sorted(heard[0]) == ["a photo of a cat", "a photo of a dogs"]


def test_a_text_that_cannot_be_read_is_named_by_its_position(listening_model):
    with pytest.raises(InputError, match=r"item 3: the text is empty"):
        listening_model.encode(["a", "b", "c", " "])


def test_in_a_mixed_list_an_item_is_named_by_its_position_among_all(callable_model, images):
    with pytest.raises(InputError, match="item 2: the text is empty"):
        callable_model.encode([images[0], "a cat", " "])


def test_mixed_items_come_back_in_the_order_they_were_given(callable_model, images):
    mixed = callable_model.encode([images[0], "a cat", images[1], "two dogs"], batch_size=1)
    apart = {"image": callable_model.encode(images[:2]), "text": callable_model.encode(["a cat", "two dogs"])}
    expected = [apart["image"][0], apart["text"][0], apart["image"][1], apart["text"][1]]
    np.testing.assert_allclose(mixed, np.stack(expected), atol=1e-6)


# An item that the encoder fails on, and options that would have no effect


def shapes(items: list) -> np.ndarray:
    """Fails as a whole batch does whose items differ in shape, and on an item that is negative."""
    if any((np.asarray(item) < 0).any() for item in items):
        raise RuntimeError("it is negative")
    return np.stack([np.asarray(item, np.float32) for item in items])


@pytest.fixture
def sounds() -> FreezeAlign:
    from freezealign.encoders.callable import CallableEncoder

    return FreezeAlign({"sound": FrozenEncoder(CallableEncoder(shapes, "sound", dim=3))}, dim=8, seed=0, device="cpu")


@pytest.fixture
def good() -> list[dict]:
    return [{"sound": np.full(3, number)} for number in range(5)]


def collated(items: list) -> dict:
    return {"inputs": items, "checked": shapes(items)}


@pytest.mark.parametrize("where", ["forward", "collate"])
@pytest.mark.parametrize("position", [0, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_an_item_that_the_encoder_fails_on_is_named_by_its_position(sounds, good, where, position, batch_size):
    if where == "collate":
        sounds.encoders["sound"].encoder.preprocess = collated
    good[position] = {"sound": np.full(3, -1)}
    with pytest.raises(InputError, match=f"item {position}: RuntimeError: it is negative"):
        sounds.encode(good, batch_size=batch_size)


def test_an_item_that_gives_another_width_is_named_by_its_position(sounds, good):
    with pytest.raises(InputError, match=r"item 5: ValueError: .*one width, got \[3, 4\]"):
        sounds.encode([*good, {"sound": np.zeros(4)}], batch_size=6)


@pytest.mark.parametrize("where", ["forward", "collate"])
def test_a_fault_of_all_items_or_of_none_is_raised_as_it_is(sounds, good, where):
    if where == "collate":
        sounds.encoders["sound"].encoder.preprocess = collated
        with pytest.raises(ValueError, match="same shape") as error:
            sounds.encode([*good, {"sound": np.zeros(4)}], batch_size=6)
        assert not isinstance(error.value, InputError)
    with pytest.raises(RuntimeError, match=r"^it is negative"):
        sounds.encode([{"sound": np.full(3, -1)}] * 4)


def test_a_fault_of_the_blocks_is_no_items_fault(bert_folder):
    model = FreezeAlign([bert_folder], recipe="kernel", dim=4, device="cpu")
    with pytest.raises(ValueError, match="has no landmarks yet") as error:
        model.encode(["a red apple"])
    assert not isinstance(error.value, InputError)


REFUSED = {
    "a prompt for pictures": (lambda model, images: model.encode_image(images, prompt="a "), "there is none among"),
    "a named prompt": (lambda model, images: model.encode(["a"], prompt_name="query"), "no prompt named 'query'"),
    "ranges without whole numbers": (lambda model, images: model.encode(["a"], ranges=np.ones((2, 8))), "leave them"),
    "ranges for bits": (
        lambda model, images: model.encode(["a"], ranges=np.ones((2, 8)), precision="binary"),
        "not for 'binary'",
    ),
    "ranges of another width": (
        lambda model, images: model.encode(["a"], ranges=np.ones((2, 9)), precision="int8"),
        r"\(2, 8\)",
    ),
    "ranges the wrong way round": (
        lambda model, images: model.encode(["a"], ranges=np.stack([np.ones(8), -np.ones(8)]), precision="int8"),
        "the least and the largest",
    ),
    "ranges of NaN": (
        lambda model, images: model.encode(["a"], ranges=np.full((2, 8), np.nan), precision="uint8"),
        "the least and the largest",
    ),
    "no dimensions": (lambda model, images: model.encode(["a"], truncate_dim=0), "at least 1, got 0"),
    "fewer than none": (lambda model, images: model.encode(["a"], truncate_dim=-1), "at least 1, got -1"),
    "whole numbers of one item": (lambda model, images: model.encode(["a"], precision="int8"), "one item has no range"),
    "an unknown precision": (lambda model, images: model.encode(["a"], precision="int4"), "unknown precision 'int4'"),
}


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_that_would_have_no_effect_is_refused_before_any_work(callable_model, images, option, monkeypatch):
    call, message = REFUSED[option]
    monkeypatch.setattr(FrozenEncoder, "forward", lambda *_: pytest.fail("it encoded"))
    with pytest.raises(ValueError, match=message):
        call(callable_model, images)


def test_a_prompt_for_frozen_features_is_refused(callable_model, pairs):
    features = callable_model.extract_features(pairs, show_progress_bar=False)["text"]
    with pytest.raises(ValueError, match="frozen features: extract them with it"):
        callable_model.encode(features, prompt="a ")


def test_a_prompt_goes_before_the_texts_of_a_mixed_list(callable_model, images):
    mixed = callable_model.encode([images[0], "cat"], prompt="a ")
    np.testing.assert_allclose(mixed[1], callable_model.encode("a cat"), atol=1e-6)
    assert callable_model.encode([], prompt="a ").shape == (0, 8)


# Whole numbers


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_with_ranges_an_item_has_the_same_numbers_beside_any_others(callable_model, texts, precision):
    vectors = callable_model.encode(texts, batch_size=1)
    options = {"precision": precision, "ranges": np.stack([vectors.min(0), vectors.max(0)]), "batch_size": 1}
    together = callable_model.encode(texts, **options)
    np.testing.assert_array_equal(np.stack([callable_model.encode(text, **options) for text in texts]), together)
    from sentence_transformers.util.quantization import quantize_embeddings

    np.testing.assert_array_equal(together, quantize_embeddings(vectors, precision=precision))


def test_what_lies_beyond_the_ranges_is_cut(callable_model, texts):
    ranges = np.stack([np.full(8, -1e-6), np.full(8, 1e-6)])
    signs = callable_model.encode(texts, precision="int8", ranges=ranges)
    np.testing.assert_array_equal(signs, np.where(callable_model.encode(texts) > 0, 127, -128))


@pytest.mark.parametrize(("count", "warned"), [(2, True), (999, True), (1000, False)])
def test_whole_numbers_of_few_items_without_ranges_are_warned_of(callable_model, count, warned):
    texts = [f"{'a' * (number % 7 + 1)} {number}" for number in range(count)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callable_model.encode(texts, precision="int8", batch_size=100)
    assert any(f"these {count} items alone" in str(one.message) for one in caught) == warned


# Models cast to another precision, and autocast

CASTS = [torch.float32, torch.bfloat16, torch.half, torch.double, "autocast"]


@pytest.mark.parametrize("cast", CASTS, ids=str)
@pytest.mark.parametrize("recipe", ["token", "pooled", "linear", "glu", "kernel", "relative"])
def test_vectors_of_a_cast_model_are_those_of_sentence_transformers(dinov2_folder, bert_folder, pairs, recipe, cast):
    pairs = [(image, " ".join(text.split()[:12])) for image, text in pairs]
    model = FreezeAlign({"image": dinov2_folder, "text": bert_folder}, recipe=recipe, dim=8, seed=0, device="cpu")
    if recipe in ("kernel", "relative"):
        model.fit(pairs, init="closed-form", epochs=0, show_progress_bar=False)
    context = contextlib.nullcontext()
    if cast == "autocast":
        context = torch.autocast("cpu", dtype=torch.bfloat16)
    else:
        model.to(cast)
    stock = model.to_sentence_transformer()
    with context:
        for items in zip(*pairs):
            vectors = model.encode(list(items), batch_size=4)
            assert vectors.dtype == np.float32
            theirs = stock.encode(list(items), batch_size=4)
            np.testing.assert_array_equal(vectors, theirs.astype(np.float32))
            assert model.encode(list(items), convert_to_tensor=True).dtype == torch.float32
            if recipe not in ("kernel", "relative"):
                assert model.encode_tokens(items[0]).embeddings.dtype == np.float32
