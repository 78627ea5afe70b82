"""From pairs to a batch that encoders take: each item read, bad pairs left out and listed, the rest preprocessed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from freezealign.batch import Features
from freezealign.data.pairs import Pair
from freezealign.encoders import FrozenEncoder
from freezealign.inputs import InputError, Skipped
from freezealign.modality import modality_of, read_items

S = TypeVar("S")
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

    def skip(self, position: int, reason: str, strict: bool, item: str = "") -> None:
        """List a pair, or an item of it, as bad; with ``strict``, raise an :class:`InputError` instead."""
        if strict:
            raise InputError(f"pair {position}: {item}{': ' if item else ''}{reason}")
        self.skipped.append(Skipped(position, reason, item))


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
            read, bad = read_pair(pair, encoders)
        except InputError as error:
            batch.skip(position, str(error), strict)
            continue
        for item, reason in bad.items():
            batch.skip(position, reason, strict, item)
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


def failures(items: Sequence[S], work: Callable[[S], Any]) -> dict[int, Exception]:
    """Return on which items ``work`` fails, by their place; on none where on each of several, as it is not theirs."""
    failed: dict[int, Exception] = {}
    for number, item in enumerate(items):
        try:
            work(item)
        except Exception as error:
            failed[number] = error
    return {} if 1 < len(items) == len(failed) else failed


def without_failures(batch: ReadBatch, strict: bool, work: Callable[[list[Pair]], T]) -> T | dict[str, Any]:
    """Return what ``work`` makes of the pairs of a batch, once those that it fails on are skipped.

    It is done for all at once, and one by one only where that fails. If it fails on each of several, the fault is not
    theirs, and is raised. Memory of an accelerator that runs out is not theirs either.

    Returns:
        An empty dictionary if no pair is left.
    """
    try:
        return work(batch.pairs)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        if not (failed := failures(batch.pairs, lambda pair: work([pair]))):
            raise
    for number, fault in failed.items():
        batch.skip(batch.positions[number], f"{type(fault).__name__}: {fault}", strict)
    left = [number for number in range(len(batch.pairs)) if number not in failed]
    batch.pairs, batch.positions = [batch.pairs[n] for n in left], [batch.positions[n] for n in left]
    return work(batch.pairs) if batch.pairs else {}


def read_pair(pair: Pair, encoders: Mapping[str, FrozenEncoder]) -> tuple[Pair, dict[str, str]]:
    """Return ``pair`` with every item read as its encoder takes it, and what is wrong with those that are left out.

    Raises:
        InputError: If no item of a modality can be read, or there is none.
    """
    read: dict[str, list[Any]] = {}
    wrong: dict[str, str] = {}
    for key, encoder in encoders.items():
        read[key], bad = read_items(pair.items[key], encoder.read)
        if not read[key]:
            raise InputError(next(iter(bad.values()), f"there is no {key}."))
        wrong |= {f"{key} {place}": reason for place, reason in bad.items()}
    return Pair(read, pair.id), wrong


def augmented(pair: Pair, position: int, encoders: Mapping[str, FrozenEncoder], views: int) -> Pair:
    """Return the pair with ``views`` rows for each item that can be augmented: itself and random views of it.

    What is drawn depends on the position in the data alone.
    """
    if views == 1:
        return pair
    rng = np.random.default_rng(position)
    items = dict(pair.items)
    for key, originals in items.items():
        if augment := modality_of(encoders[key].kind).augment:
            items[key] = [
                view for item in originals for view in (item, *(augment(item, rng) for _ in range(views - 1)))
            ]
    return Pair(items, pair.id)
