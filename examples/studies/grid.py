"""A grid of encoders, read from JSON, and their features, computed once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from controls import CONTROLS, random_weights

from freezealign import FeatureStore, FrozenEncoder
from freezealign.alignment.candidates import Candidate, CandidateLoader
from freezealign.encoders import Encoder

BATCH_SIZES = {"image": 8, "text": 32}  # a convolutional encoder on a CPU is fastest while its maps fit the cache
MODALITIES = {"vision": "image", "text": "text"}


@dataclass(frozen=True)
class Entry:
    """An encoder of a grid.

    Args:
        name: What it is called; without ``random_of`` and ``control``, the encoder itself.
        modality: ``image`` or ``text``.
        label: A short name for figures.
        random_of: The encoder whose architecture it has, with random weights.
        control: A name in :data:`controls.CONTROLS`.
        revision: Commit, branch or tag on the hub.
    """

    name: str
    modality: str
    label: str = ""
    random_of: str | None = None
    control: str | None = None
    revision: str | None = None

    @property
    def kind(self) -> Literal["trained", "random", "control"]:
        """Whether it has learned anything."""
        return "random" if self.random_of else "control" if self.control else "trained"

    def load(self) -> FrozenEncoder:
        """Return the encoder."""
        if self.control is not None:
            return CONTROLS[self.control](self.name)
        if self.random_of is not None:
            return random_weights(self.random_of, self.name, self.modality)
        return FrozenEncoder(self.name, self.modality, self.revision)


Grid = dict[str, list[Entry]]
"""The entries of ``image`` and of ``text``."""


def read_grid(path: Path) -> Grid:
    """Return the entries of a JSON file ``{"vision": [{"name": …}, …], "text": […]}``.

    Raises:
        ValueError: If two encoders of a side have one name, or there are fewer than three pairs of trained encoders.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    grid = {modality: [Entry(modality=modality, **e) for e in content[side]] for side, modality in MODALITIES.items()}
    for modality, entries in grid.items():
        if len({entry.name for entry in entries}) < len(entries):
            raise ValueError(f"{path}: the encoders of {modality} need names, each its own.")
    if math.prod(sum(entry.kind == "trained" for entry in entries) for entries in grid.values()) < 3:
        raise ValueError(f"{path}: a rank correlation needs three pairs of trained encoders or more.")
    return grid


def load_features(
    entries: Sequence[Entry], data: Any, cache: Path, modalities: Sequence[str] = ("image", "text")
) -> list[Candidate]:
    """Return the features of each encoder on all readable items, and what it costs; one is in memory at a time.

    Args:
        entries: The encoders, all of one modality.
        data: Pairs.
        cache: Folder with a store for each encoder, of the form that ``rank_encoders(path=…)`` writes.
        modalities: What the pairs have; texts alone have one.
    """
    modality = entries[0].modality
    loader = CandidateLoader(data, modalities, cache, "last", BATCH_SIZES[modality], True)
    found = []
    for entry in entries:
        print(f"features of {entry.name}", flush=True)
        found.append(loader.load(entry.name, entry.load(), modality))
    return found


def paired(image: FeatureStore, text: FeatureStore) -> FeatureStore:
    """Return the features of images and of their texts, the same items in one order, as one store in memory."""
    if image.ids != text.ids:
        raise ValueError("these are the features of other items, or of the same ones in another order.")
    image, text = image.resident(), text.resident()
    return FeatureStore({**image.origins, **text.origins}, {**image.columns, **text.columns})


class StoredEncoder(Encoder):
    """An encoder of which only stored features are at hand: enough to train on them.

    Args:
        store: Its features.
        modality: Which of the store's.
    """

    def __init__(self, store: FeatureStore, modality: str) -> None:
        super().__init__()
        self.modality, self.origin = modality, store.origins[modality]
        self.has_cls = self.origin.pooling == "cls"
        self.dim = store[modality].load([0])["sentence_embedding"].shape[1]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What the features' encoder does to an input."""
        return self.origin.preprocessing

    def fingerprint(self) -> str:
        """Return the fingerprint of the features' encoder."""
        return self.origin.fingerprint


def stored_encoders(store: FeatureStore) -> dict[str, FrozenEncoder]:
    """Return a stand-in for the encoder of each modality."""
    return {modality: FrozenEncoder(StoredEncoder(store, modality)) for modality in store.origins}
