"""What ``encode`` runs on: batches in order of length, read in the background, projected, put back in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from freezealign.features import FrozenFeatures
from freezealign.inputs import InputError
from freezealign.modules import Features, FrozenEncoder

T = TypeVar("T")


class Source(Protocol):
    """Something that gives batches of features for rows 0 … n - 1."""

    def __len__(self) -> int: ...
    def lengths(self) -> np.ndarray:
        """Return a size for each row; rows of like size are batched together."""

    def load(self, index: np.ndarray) -> Features:
        """Return a batch on the CPU."""


class Items:
    """Raw inputs of one modality, read and preprocessed when their batch is due."""

    def __init__(self, encoder: FrozenEncoder, items: list[Any], prompt: str | None = None) -> None:
        self.encoder, self.items, self.prompt = encoder, items, prompt

    def __len__(self) -> int:
        return len(self.items)

    def lengths(self) -> np.ndarray:
        """Return the characters of a text, and 0 for anything else."""
        return np.array([len(item) if isinstance(item, str) else 0 for item in self.items])

    def load(self, index: np.ndarray) -> Features:
        """Read the items and preprocess them.

        Raises:
            InputError: If one cannot be read; the message gives its position.
        """
        read = []
        for row in index:
            try:
                read.append(self.encoder.read(self.items[row]))
            except InputError as error:
                raise InputError(f"item {row}: {error}") from error
        return self.encoder.preprocess(read, prompt=self.prompt)


def run_batches(
    source: Source | FrozenFeatures,
    forward: Callable[[Features], Iterable[T]],
    *,
    batch_size: int,
    device: torch.device,
    show_progress_bar: bool,
    description: str,
) -> list[T]:
    """Apply ``forward`` to every row of ``source`` and return one result a row, in the source's order.

    Rows are batched longest first, as sentence-transformers does, which wastes least padding and meets the largest
    batch at once. The next batch is read in a thread while the model works.
    """
    from tqdm.auto import tqdm

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    order = np.argsort(-source.lengths())
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    results: list[Any] = [None] * len(order)
    with tqdm(total=len(order), desc=description, unit="item", disable=not show_progress_bar, delay=1) as bar:
        for rows, batch in zip(batches, prefetch(source.load(rows) for rows in batches)):
            for row, result in zip(rows, forward(to_device(batch, device))):
                results[row] = result
            bar.update(len(rows))
    return results


def to_device(batch: Features, device: torch.device) -> Features:
    """Move the tensors of a batch to ``device``."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


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
