"""From pairs to a batch that encoders take: each item read, bad pairs left out and listed, the rest preprocessed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from freezealign.batch import Features
from freezealign.data.pairs import Pair
from freezealign.encoders import FrozenEncoder
from freezealign.encoders.engines import EngineError
from freezealign.inputs import InputError, Skipped

T = TypeVar("T")
_TOKENIZING = threading.Lock()
"""Tokenizers change their own state while they work, so that only one thread may be at it."""


@dataclass
class ReadBatch:
    """Pairs read and preprocessed.

    Args:
        positions: Where each good pair stands in the data.
        pairs: The good pairs, their items as encoders take them.
        inputs: For each modality all their items as one batch, on the CPU.
        skipped: The bad ones.
    """

    positions: list[int] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    inputs: dict[str, Features] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, position: int, reason: str, strict: bool) -> None:
        """List a pair as bad; with ``strict``, raise an :class:`InputError` instead."""
        if strict:
            raise InputError(f"pair {position}: {reason}")
        self.skipped.append(Skipped(position, reason))


def read_batch(
    pairs: Iterable[tuple[int, Pair]],
    encoders: Mapping[str, FrozenEncoder],
    strict: bool,
    change: Callable[[Pair, int], Pair] = lambda pair, position: pair,
) -> ReadBatch:
    """Read pairs, each with its position in the data.

    Args:
        pairs: The positions and the pairs.
        encoders: Read and preprocess the items of their modality.
        strict: Raise at the first bad pair.
        change: What is done to a pair once it is read, such as augmenting it.

    Raises:
        InputError: With ``strict``, if an item cannot be read.
    """
    batch = ReadBatch()
    for position, pair in pairs:
        try:
            read = read_pair(pair, encoders)
        except InputError as error:
            batch.skip(position, str(error), strict)
            continue
        batch.positions.append(position)
        batch.pairs.append(change(read, position))
    if batch.pairs:
        batch.inputs = without_failures(batch, strict, lambda pairs: collate(pairs, encoders))
    return batch


def collate(pairs: Sequence[Pair], encoders: Mapping[str, FrozenEncoder]) -> dict[str, Features]:
    """Return for each modality all items of pairs that were read as one batch, on the CPU."""
    inputs = {}
    for key, encoder in encoders.items():
        items = [item for pair in pairs for item in pair.items[key]]
        with _TOKENIZING if encoder.modality != "image" else nullcontext():
            inputs[key] = encoder.collate(items)
    return inputs


def without_failures(batch: ReadBatch, strict: bool, work: Callable[[list[Pair]], T]) -> T | dict[str, Any]:
    """Return what ``work`` makes of the pairs of a batch, once those that it fails on are skipped.

    It is done for all at once, and one by one only where that fails. If it fails on each of several, the fault is not
    theirs, and is raised. Memory of an accelerator that runs out is not theirs either,
    nor is an engine that does not fit the encoder.

    Returns:
        An empty dictionary if no pair is left.
    """
    try:
        return work(batch.pairs)
    except (torch.OutOfMemoryError, EngineError):
        raise
    except Exception as error:
        failed: dict[int, Exception] = {}
        for number, pair in enumerate(batch.pairs):
            try:
                work([pair])
            except Exception as own:
                failed[number] = own
        if not failed or 1 < len(batch.pairs) == len(failed):
            raise error
    for number, fault in failed.items():
        batch.skip(batch.positions[number], f"{type(fault).__name__}: {fault}", strict)
    left = [number for number in range(len(batch.pairs)) if number not in failed]
    batch.pairs, batch.positions = [batch.pairs[n] for n in left], [batch.positions[n] for n in left]
    return work(batch.pairs) if batch.pairs else {}


def read_pair(pair: Pair, encoders: Mapping[str, FrozenEncoder]) -> Pair:
    """Return ``pair`` with every item read as its encoder takes it.

    Raises:
        InputError: If an item cannot be read, or there is none of a modality.
    """
    for key, items in pair.items.items():
        if not items:
            raise InputError(f"there is no {key}.")
    return Pair({key: [encoders[key].read(item) for item in items] for key, items in pair.items.items()}, pair.id)
