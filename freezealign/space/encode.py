"""What ``encode`` runs on: items become batches of like size, read ahead, and a batch goes whole through its tower."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from freezealign.batch import Features, to_device
from freezealign.encoders import FrozenEncoder
from freezealign.features import FrozenFeatures, Origin
from freezealign.inputs import InputError
from freezealign.modality import unwrap
from freezealign.prefetch import ordered_map, prefetch
from freezealign.space.recognise import as_items, infer_modality
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
        items: list[Any],
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
            InputError: If one cannot be read; the message gives its position.
        """
        read = []
        for row in index:
            try:
                read.append(self.encoder.read(unwrap(self.items[row], self.tower)))
            except InputError as error:
                raise InputError(f"item {self.positions[row]}: {error}") from error
        return self.encoder.collate(read, self.prompt)


def group_inputs(
    towers: Mapping[str, Tower], inputs: Any, modality: str | None, prompt: str | None
) -> dict[str, Group]:
    """Sort inputs, items or frozen features, by tower.

    Raises:
        InputError: If an item fits no tower; the message gives its position.
        ValueError: If there is no such tower, or frozen features are another encoder's.
    """
    if isinstance(inputs, FrozenFeatures):
        _check_frozen(towers, inputs, modality)
        return {inputs.modality: Group(inputs, np.arange(len(inputs)))}
    items = as_items(inputs)
    if modality:
        find_tower(towers, modality)
        names = [modality] * len(items)
    else:
        kinds = {name: tower.encoder.modality for name, tower in towers.items()}
        names = [_infer(item, position, kinds) for position, item in enumerate(items)]
    groups: dict[str, Group] = {}
    for name in dict.fromkeys(names):
        positions = [position for position, other in enumerate(names) if other == name]
        members = Items(name, towers[name].encoder, [items[position] for position in positions], positions, prompt)
        groups[name] = Group(members, np.array(positions))
    return groups


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


def run_group(
    group: Group,
    forward: Callable[[Features], T],
    *,
    batch_size: int,
    device: torch.device,
    show_progress_bar: bool,
    description: str,
) -> Iterator[tuple[np.ndarray, T]]:
    """Yield the positions of each batch and what ``forward`` gives for it.

    Rows are batched longest first, as sentence-transformers does, which wastes least padding and meets the largest
    batch at once. The next batches are read in threads while the model works: pictures in several, texts in one, as
    tokenizers change while they work.
    """
    from tqdm.auto import tqdm

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    order = np.argsort(-group.source.lengths())
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    is_pictures = isinstance(group.source, Items) and group.source.encoder.modality == "image"
    read = ordered_map(group.source.load, batches, READERS) if is_pictures else map(group.source.load, batches)
    with tqdm(total=len(order), desc=description, unit="item", disable=not show_progress_bar, delay=1) as bar:
        for rows, batch in zip(batches, prefetch(read)):
            yield group.positions[rows], forward(to_device(batch, device))
            bar.update(len(rows))
