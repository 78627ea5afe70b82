"""What ``encode`` runs on: batches in order of length, read in the background, projected, put back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from freezealign.batch import Features, to_device
from freezealign.encoders import FrozenEncoder
from freezealign.features import FrozenFeatures, Origin
from freezealign.inputs import InputError
from freezealign.modality import as_items, infer_modality, unwrap
from freezealign.prefetch import prefetch
from freezealign.space.tower import Tower, find_tower

T = TypeVar("T")


class Source(Protocol):
    """Something that gives batches of features for rows 0 … n - 1."""

    def __len__(self) -> int: ...
    def lengths(self) -> np.ndarray:
        """Return a size for each row; rows of like size are batched together."""

    def load(self, index: np.ndarray) -> Features:
        """Return a batch on the CPU."""


class Items:
    """Raw inputs of one tower, read and preprocessed when their batch is due.

    Args:
        encoder: Reads them.
        items: The inputs.
        positions: Where each stood in what the user passed, for error messages.
        prompt: Put in front of every text.
    """

    def __init__(
        self, encoder: FrozenEncoder, items: list[Any], positions: Sequence[int], prompt: str | None = None
    ) -> None:
        self.encoder, self.items, self.positions = encoder, items, positions
        self.prompt = prompt if encoder.modality == "text" else None

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
                raise InputError(f"item {self.positions[row]}: {error}") from error
        return self.encoder.collate(read, self.prompt)


def run_towers(
    towers: Mapping[str, Tower],
    inputs: Any,
    forward: Callable[[Tower, Features], Iterable[T]],
    *,
    modality: str | None,
    prompt: str | None = None,
    **options: Any,
) -> list[T]:
    """Apply ``forward`` to batches of each tower's inputs and return one result an item, in the order of ``inputs``.

    Args:
        towers: The model's towers.
        inputs: Items, or frozen features; see :meth:`FreezeAlign.encode`.
        forward: From a tower and a batch on the device to one result a row.
        modality: The tower of all items, instead of inferring it.
        prompt: Put in front of every text.
        **options: Of :func:`run_batches`.
    """
    groups = _group(towers, inputs, modality, prompt)
    results: list[Any] = [None] * sum(len(positions) for _, positions in groups.values())
    for name, (source, positions) in groups.items():
        outputs = run_batches(source, partial(forward, towers[name]), description=f"Encoding {name}", **options)
        for position, output in zip(positions, outputs):
            results[position] = output
    return results


def _group(
    towers: Mapping[str, Tower], inputs: Any, modality: str | None, prompt: str | None
) -> dict[str, tuple[Source, Sequence[int]]]:
    """Sort inputs by tower, and remember where each stood."""
    if isinstance(inputs, FrozenFeatures):
        if modality not in (None, inputs.modality):
            raise ValueError(f"these are frozen features of {inputs.modality}, not of {modality}.")
        tower = find_tower(towers, inputs.modality)
        pooling = tower.first_pooling if inputs.tokens is None else None
        if inputs.tokens is not None or pooling is not None:  # else the tower says that it needs tokens
            inputs.origin.check(inputs.modality, Origin.of(tower.encoder, pooling.mode if pooling else None))
        return {inputs.modality: (inputs, range(len(inputs)))}
    items = as_items(inputs)
    kinds = {name: tower.encoder.modality for name, tower in towers.items()}
    if modality:
        find_tower(towers, modality)
        names = [modality] * len(items)
    else:
        names = [_infer(item, position, kinds) for position, item in enumerate(items)]
    groups: dict[str, tuple[Source, Sequence[int]]] = {}
    for name in dict.fromkeys(names):
        positions = [position for position, other in enumerate(names) if other == name]
        members = [unwrap(items[position], name) for position in positions]
        groups[name] = (Items(towers[name].encoder, members, positions, prompt), positions)
    return groups


def _infer(item: Any, position: int, kinds: Mapping[str, str]) -> str:
    try:
        return infer_modality(item, kinds)
    except InputError as error:
        raise InputError(f"item {position}: {error}") from error


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
