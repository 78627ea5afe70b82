"""From pairs to a batch that encoders take: each item read, bad pairs left out and listed, the rest preprocessed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from freezealign.batch import Features
from freezealign.data.pairs import Pair
from freezealign.encoders import FrozenEncoder
from freezealign.inputs import InputError, Skipped, describe

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
        try:
            batch.inputs = _collate(batch.pairs, encoders)
        except Exception as error:
            _leave_out_uncollatable(batch, encoders, strict, error)
    return batch


def _collate(pairs: Sequence[Pair], encoders: Mapping[str, FrozenEncoder]) -> dict[str, Features]:
    inputs = {}
    for key, encoder in encoders.items():
        with _TOKENIZING if encoder.modality != "image" else nullcontext():
            inputs[key] = encoder.collate([item for pair in pairs for item in pair.items[key]])
    return inputs


def _leave_out_uncollatable(
    batch: ReadBatch, encoders: Mapping[str, FrozenEncoder], strict: bool, error: Exception
) -> None:
    """Preprocess each pair by itself, list those that fail, and preprocess the others together.

    Raises:
        Exception: ``error``, if the pairs fail only together.
    """
    good = []
    for position, pair in zip(batch.positions, batch.pairs):
        try:
            _collate([pair], encoders)
            good.append((position, pair))
        except Exception as reason:
            batch.skip(position, f"it cannot be preprocessed: {describe(reason)}", strict)
    if len(good) == len(batch.pairs):
        raise error
    batch.positions, batch.pairs = [position for position, _ in good], [pair for _, pair in good]
    batch.inputs = _collate(batch.pairs, encoders) if good else {}


def read_pair(pair: Pair, encoders: Mapping[str, FrozenEncoder]) -> Pair:
    """Return ``pair`` with every item read as its encoder takes it.

    Raises:
        InputError: If an item cannot be read, or there is none of a modality.
    """
    for key, items in pair.items.items():
        if not items:
            raise InputError(f"there is no {key}.")
    return Pair({key: [encoders[key].read(item) for item in items] for key, items in pair.items.items()}, pair.id)
