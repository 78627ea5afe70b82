"""What ``encode`` runs on: items become batches of like size, read ahead, and a batch goes whole through its tower."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from freezealign.batch import Features, to_device
from freezealign.encoders import FrozenEncoder
from freezealign.encoders.engines import EngineError
from freezealign.features import FrozenFeatures, Origin
from freezealign.features.read import failures
from freezealign.inputs import InputError
from freezealign.modality import unwrap
from freezealign.prefetch import ordered_map, prefetch
from freezealign.space.recognise import as_items, infer_modality, is_single
from freezealign.space.tower import Tower, find_tower

T = TypeVar("T")
READERS = min(4, os.cpu_count() or 1)
"""Threads that read pictures; there are up to twice as many batches in memory."""


class Source(Protocol):
    """Something that gives batches of features for rows 0 … n - 1."""

    def __len__(self) -> int: ...
    def lengths(self) -> np.ndarray:
        """Return a size for each row; rows of like size are batched together."""

    def load(self, index: np.ndarray) -> Features:
        """Return a batch on the CPU."""


class Group(NamedTuple):
    """The inputs of one tower: where they come from, and where each stood in what the user passed."""

    source: Source
    positions: np.ndarray


class Items:
    """Raw inputs of one tower, read and preprocessed when their batch is due.

    Args:
        tower: What the tower is called, as a dict may that holds an item.
        encoder: Reads them.
        items: The inputs.
        positions: Where each stood in what the user passed, for error messages.
        prompt: Put in front of every text.
    """

    def __init__(
        self,
        tower: str,
        encoder: FrozenEncoder,
        items: Sequence[Any],
        positions: Sequence[int],
        prompt: str | None = None,
    ) -> None:
        self.tower, self.encoder = tower, encoder
        self.items, self.positions, self.prompt = items, positions, prompt

    def __len__(self) -> int:
        return len(self.items)

    def lengths(self) -> np.ndarray:
        """Return the characters of a text, and 0 for anything else."""
        items = (unwrap(item, self.tower) for item in self.items)
        return np.array([len(item) if isinstance(item, str) else 0 for item in items])

    def load(self, index: np.ndarray) -> Features:
        """Read the items and preprocess them.

        Raises:
            InputError: If one cannot be; the message gives its position.
        """
        read = [self._read(row) for row in index]
        try:
            return self.encoder.collate(read, self.prompt)
        except Exception:
            self._blame(index, read, lambda item: self.encoder.collate([item], self.prompt))
            raise

    def blame_encoder(self, index: np.ndarray, device: torch.device) -> None:
        """Find the items of a failed batch on which the encoder fails alone.

        Raises:
            InputError: With the position of the first, if it is the fault of some of them.
        """
        read = [self._read(row) for row in index]
        self._blame(
            index, read, lambda item: self.encoder(to_device(self.encoder.collate([item], self.prompt), device))
        )

    def _blame(self, index: np.ndarray, read: list[Any], work: Callable[[Any], Any]) -> None:
        if failed := {self.positions[index[place]]: error for place, error in failures(read, work).items()}:
            position, error = min(failed.items(), key=lambda own: own[0])
            raise InputError(f"item {position}: {type(error).__name__}: {error}") from error

    def _read(self, row: int) -> Any:
        try:
            return self.encoder.read(unwrap(self.items[row], self.tower))
        except InputError as error:
            raise InputError(f"item {self.positions[row]}: {error}") from error


def group_inputs(
    towers: Mapping[str, Tower], inputs: Any, modality: str | None, prompt: str | None
) -> tuple[dict[str, Group], bool]:
    """Sort inputs, items or frozen features, by tower, and tell whether they are one item rather than a collection.

    Raises:
        InputError: If an item fits no tower; the message gives its position.
        ValueError: If there is no such tower, frozen features are another encoder's, or a prompt has no text to go
            before.
    """
    if isinstance(inputs, FrozenFeatures):
        if prompt:
            raise ValueError("prompt= goes in front of texts, and these are frozen features: extract them with it.")
        _check_frozen(towers, inputs, modality)
        return {inputs.modality: Group(inputs, np.arange(len(inputs)))}, False
    chosen = {modality: find_tower(towers, modality)} if modality else towers
    kinds = {name: tower.encoder.kind for name, tower in chosen.items()}
    items, single = as_items(inputs, kinds.values()), is_single(inputs, kinds.values())
    if modality:
        places: dict[str, Sequence[int]] = {modality: range(len(items))}
    else:
        names = [_infer(item, position, kinds) for position, item in enumerate(items)]
        places = {name: [at for at, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    texts = (unwrap(items[at], name) for name, own in places.items() for at in own)
    if prompt and len(items) and not any(isinstance(text, str) for text in texts):
        raise ValueError("prompt= goes in front of texts, and there is none among these items; leave it out.")
    groups = {}
    for name, own in places.items():
        members = items if modality else [items[at] for at in own]
        if len(members):
            groups[name] = Group(Items(name, towers[name].encoder, members, own, prompt), np.array(own))
    return groups, single


def _check_frozen(towers: Mapping[str, Tower], features: FrozenFeatures, modality: str | None) -> None:
    if modality not in (None, features.modality):
        raise ValueError(f"these are frozen features of {features.modality}, not of {modality}.")
    tower = find_tower(towers, features.modality)
    pooling = tower.first_pooling if features.tokens is None else None
    if features.tokens is not None or pooling is not None:  # else the tower says that it needs tokens
        features.origin.check(features.modality, Origin.of(tower.encoder, pooling.mode if pooling else None))


def _infer(item: Any, position: int, kinds: Mapping[str, str]) -> str:
    try:
        return infer_modality(item, kinds)
    except InputError as error:
        raise InputError(f"item {position}: {error}") from error


def run_groups(
    groups: Mapping[str, Group],
    forward: Callable[[str, Features], T],
    batch_size: int,
    device: torch.device,
    show_progress_bar: bool | None,
) -> Iterator[tuple[np.ndarray, T]]:
    """Yield the positions of each batch of each tower, and what ``forward`` gives for it.

    Rows are batched longest first, as sentence-transformers does, which wastes least padding and meets the largest
    batch at once. The next batches are read in threads while the model works: pictures in several, texts in one, as
    tokenizers change while they work.
    """
    from tqdm.auto import tqdm

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    for name, (source, positions) in groups.items():
        order = np.argsort(-source.lengths())
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        is_pictures = isinstance(source, Items) and source.encoder.modality == "image"
        read = ordered_map(source.load, batches, READERS) if is_pictures else map(source.load, batches)
        bar_options = {"total": len(order), "unit": "item", "disable": show_progress_bar is False, "delay": 1}
        with tqdm(desc=f"Encoding {name}", **bar_options) as bar:
            for rows, batch in zip(batches, prefetch(read)):
                try:
                    result = forward(name, to_device(batch, device))
                except (torch.OutOfMemoryError, EngineError):
                    raise
                except Exception:
                    if isinstance(source, Items):
                        source.blame_encoder(rows, device)
                    raise
                yield positions[rows], result
                bar.update(len(rows))
