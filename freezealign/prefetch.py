"""Reading ahead: what comes next is prepared in threads while the model works on what is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import repeat, takewhile
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")
_END: Any = object()


def prefetch(iterable: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield the elements of ``iterable``, computed in a thread up to ``depth`` ahead; its errors are raised here."""
    elements = iter(iterable)
    with closing(_ahead(lambda _: next(elements, _END), repeat(None), 1, depth, "freezealign-prefetch")) as ahead:
        yield from takewhile(lambda element: element is not _END, ahead)


def ordered_map(function: Callable[[S], T], iterable: Iterable[S], threads: int) -> Iterator[T]:
    """Yield ``function`` of every element in order, computed in threads, at most twice as many ahead as there are."""
    return _ahead(function, iterable, threads, 2 * threads, "freezealign-reader")


def _ahead(
    function: Callable[[S], T], iterable: Iterable[S], threads: int, depth: int, name: str
) -> Generator[T, None, None]:
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, name) as pool:
        try:
            for element in iterable:
                pending.append(pool.submit(function, element))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
