from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freezealign import FreezeAlign, FrozenEncoder
from freezealign.batch import to_device
from freezealign.inputs import InputError
from freezealign.prefetch import prefetch
from freezealign.space.encode import Group, run_group

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
    group, found = Group(source, np.arange(len(source))), {}
    options = {"batch_size": batch_size, "device": CPU, "show_progress_bar": False, "description": "Encoding"}
    for positions, results in run_group(group, forward, **options):
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


# run_group


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
