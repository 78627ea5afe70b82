"""Reading ahead: the next batch is prepared in a thread while the model works on this one."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")


_END = object()


def prefetch(iterable: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield the elements of ``iterable``, computed in a thread up to ``depth`` ahead; its errors are raised here."""
    elements: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def put(element: Any) -> bool:
        while not stopped.is_set():
            try:
                elements.put(element, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for element in iterable:
                if not put((element, None)):
                    return
            put((_END, None))
        except BaseException as error:  # handed to the consumer, which raises it
            put((_END, error))

    thread = threading.Thread(target=work, name="freezealign-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            element, error = elements.get()
            if error is not None:
                raise error
            if element is _END:
                return
            yield element
    finally:
        stopped.set()
        thread.join()


def ordered_map(function: Callable[[S], T], iterable: Iterable[S], threads: int) -> Iterator[T]:
    """Yield ``function`` of every element in order, computed in threads, at most twice as many ahead as there are."""
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, "freezealign-reader") as pool:
        try:
            for element in iterable:
                pending.append(pool.submit(function, element))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
