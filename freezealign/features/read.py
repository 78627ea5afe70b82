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
from freezealign.encoders.engines import EngineError
from freezealign.inputs import InputError, Skipped
from freezealign.modality import modality_of, read_items
from freezealign.words import printable

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
        reason = printable(reason)  # data may put anything into a message
        if strict:
            raise InputError(f"pair {position}: {item}{': ' if item else ''}{reason}")
        self.skipped.append(Skipped(position, reason, item))

    def skip_items(self, number: int, key: str, reasons: Mapping[int, str], strict: bool) -> Pair:
        """List items of good pair ``number`` as bad, by their place among those that are left of ``key``.

        Returns:
            The pair without them.
        """
        position, pair = self.positions[number], self.pairs[number]
        gone = {entry.item for entry in self.skipped if entry.index == position}
        names = (f"{key} {place}" for place in range(len(pair.items[key]) + len(gone)))
        places = [name for name in names if name not in gone]
        for place, reason in reasons.items():
            self.skip(position, reason, strict, places[place])
        left = [item for place, item in enumerate(pair.items[key]) if place not in reasons]
        return Pair({**pair.items, key: left}, pair.id)


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
        batch.inputs = without_failures(batch, strict, lambda pairs: collate(pairs, encoders), encoders)
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


def without_failures(
    batch: ReadBatch, strict: bool, work: Callable[[list[Pair]], T], encoders: Mapping[str, FrozenEncoder]
) -> T | dict[str, Any]:
    """Return what ``work`` makes of the pairs of a batch, once those that it fails on are skipped.

    It is done for all at once, and one by one only where that fails; of a pair with several captions, only those are
    skipped that it fails on. If it fails on each of several pairs, the fault is not theirs, and is raised. Memory of an
    accelerator that runs out is not theirs either, nor is an engine that does not fit the encoder.

    Returns:
        An empty dictionary if no pair is left.
    """
    try:
        return work(batch.pairs)
    except (torch.OutOfMemoryError, EngineError):
        raise
    except Exception:
        if not (failed := failures(batch.pairs, lambda pair: work([pair]))):
            raise
    lost = []
    for number, fault in failed.items():
        if (pair := _without_captions(batch, number, strict, work, encoders)) is not None:
            batch.pairs[number] = pair
        else:
            batch.skip(batch.positions[number], _told(fault), strict)
            lost.append(number)
    left = [number for number in range(len(batch.pairs)) if number not in lost]
    batch.pairs, batch.positions = [batch.pairs[n] for n in left], [batch.positions[n] for n in left]
    return work(batch.pairs) if batch.pairs else {}


def _without_captions(
    batch: ReadBatch,
    number: int,
    strict: bool,
    work: Callable[[list[Pair]], Any],
    encoders: Mapping[str, FrozenEncoder],
) -> Pair | None:
    """Return a pair that ``work`` fails on without the captions that it fails on, if it then does not."""
    pair = batch.pairs[number]
    for key, own in pair.items.items():
        if len(own) == 1 or modality_of(encoders[key].kind).augment:  # views of a picture stay together
            continue
        alone = [Pair({**pair.items, key: [item]}, pair.id) for item in own]
        if bad := failures(alone, lambda one: work([one])):
            return batch.skip_items(number, key, {place: _told(fault) for place, fault in bad.items()}, strict)
    return None


def _told(fault: Exception) -> str:
    return f"{type(fault).__name__}: {fault}"


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
