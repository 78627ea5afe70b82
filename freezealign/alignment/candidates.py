"""Encoders that may be paired: their features on one set of data, and what they cost."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler

from freezealign.alignment.vectors import StoreVectors, check_spaces
from freezealign.batch import default_device, to_device
from freezealign.data.pairs import Pair
from freezealign.data.reader import PairReader
from freezealign.encoders import FrozenEncoder
from freezealign.encoders.layers import AllLayers
from freezealign.features import FeatureStore, join_encoders
from freezealign.features.beside import match_items
from freezealign.features.job import extract_features
from freezealign.features.read import read_batch
from freezealign.files import claim, exclusive
from freezealign.space.recipes import as_encoder, default_pooling, is_encoder, pooled_extraction
from freezealign.words import printable

logger = logging.getLogger(__name__)

CandidateLike = str | FrozenEncoder | Sequence[str | FrozenEncoder] | FeatureStore
TIMED_ITEMS = 16
SETTLED_RUNS, MOST_RUNS, FASTER = 5, 50, 0.95
"""An encoder is timed until so many runs in a row are not below this share of the fastest, or so many in all: what runs
first finds a machine that takes a second or two to wake up."""


@dataclass(frozen=True)
class Cost:
    """What an encoder costs, and the width of its last layer; ``None`` where only its features are known.

    ``milliseconds`` are to encode an item, read before, in a batch of 16 on this machine: the fastest run, settled.
    """

    parameters: int | None
    milliseconds: float | None
    dim: int


@dataclass(frozen=True)
class LeftOut:
    """What a ranking is without, and why: the item at a position in the data, which an encoder has no features of.

    ``index`` is ``None`` where the encoder itself is left out.
    """

    encoder: str
    modality: str
    index: int | None
    reason: str


@dataclass(frozen=True)
class Candidate:
    """An encoder, by the name that the ranking calls it, with its features and what it costs.

    ``widths`` are those of its layers, one after another in each vector.
    """

    name: str
    modality: str
    store: FeatureStore
    cost: Cost
    widths: Sequence[int]

    def vectors(self, items: np.ndarray, layer: int) -> StoreVectors:
        """Return its vectors of some items at one of its layers, counted from 0."""
        start = sum(self.widths[:layer])
        columns = slice(start, start + self.widths[layer])
        return StoreVectors(self.store, self.modality, items, columns, self.name)


def named(encoders: Sequence[CandidateLike] | Mapping[str, CandidateLike], what: str) -> dict[str, CandidateLike]:
    """Return encoders by name.

    Raises:
        ValueError: If there is none, two have one name, or a store has no features of ``what``.
    """
    if isinstance(encoders, (str, FrozenEncoder, FeatureStore)):
        encoders = [encoders]
    if not isinstance(encoders, Mapping):
        names = [_name(encoder, what) for encoder in encoders]
        if len(set(names)) < len(names):
            raise ValueError(f"two {what} encoders have one name: {names}; give them names: {{'name': encoder, …}}.")
        encoders = dict(zip(names, encoders))
    if not encoders:
        raise ValueError(f"there is no {what} encoder to compare: name at least one on each side.")
    return dict(encoders)


def _name(encoder: CandidateLike, what: str) -> str:
    if isinstance(encoder, (str, FrozenEncoder)):
        return encoder if isinstance(encoder, str) else encoder.name
    if not isinstance(encoder, FeatureStore):
        return "+".join(_name(one, what) for one in encoder)
    if what not in encoder.origins:
        raise ValueError(f"{encoder} has no {what} features; it has {sorted(encoder.origins)}.")
    return encoder.origins[what].name


class CandidateLoader:
    """Gives the features of encoders, from stores where they are.

    Args:
        data: Pairs that can be read as often as there are encoders; ``None`` if all features are in stores.
        modalities: Of the two sides.
        path: Folder with a store for each encoder; features that are not there yet are kept there.
        layers: ``last``, or ``all``.
        batch_size: Items a forward pass.
        show_progress_bar: Show progress if it takes longer than a second.
        strict: Raise at the first encoder that fails, and at the first bad item.

    Attributes:
        left_out: Encoders that failed.
    """

    def __init__(
        self,
        data: Any,
        modalities: Sequence[str],
        path: Path | None,
        layers: str,
        batch_size: int,
        show_progress_bar: bool,
        strict: bool = False,
    ) -> None:
        if layers not in ("last", "all"):
            raise ValueError(f"layers is 'last' or 'all', got {layers!r}.")
        if isinstance(data, Iterator):
            raise ValueError("the data is read once for every encoder, and an iterator only once: pass a list.")
        if isinstance(getattr(data, "sampler", None), RandomSampler):
            raise ValueError("a DataLoader that shuffles gives every encoder another order: pass shuffle=False.")
        self.reader = None if data is None else PairReader(data, modalities)
        self.path, self.layers, self.batch_size = path, layers, batch_size
        self.show_progress_bar, self.strict, self.left_out = show_progress_bar, strict, list[LeftOut]()
        if self.reader is not None:
            next(self.reader.read(), None)  # what is wrong with all data is said before any encoder is loaded
        if path is not None and self.reader is not None:
            with exclusive(path):
                identity = _identity(self.reader)
                claim(path / "data.json", identity, "cache of features of these pairs in this order")

    def load_side(self, side: Mapping[str, CandidateLike], modality: str) -> list[Candidate]:
        """Return the encoders of one modality that have features; those that fail are listed, and logged.

        Raises:
            ValueError: If an encoder is of another modality, or of a kind that cannot be used here.
            Exception: What the first encoder failed with, if all do, or with ``strict``.
        """
        for entry in side.items():
            self._check(*entry, modality)
        found, failures = [], []
        for name, encoder in side.items():
            try:
                found.append(self.load(name, encoder, modality))
            except Exception as error:
                failures.append(error)
                if self.strict:
                    raise
                self.left_out.append(LeftOut(name, modality, None, f"{type(error).__name__}: {error}"))
                logger.warning("the %s encoder '%s' is left out: %s", modality, printable(name), printable(error))
        if not found:
            raise failures[0]
        return found

    def _check(self, name: str, encoder: CandidateLike, modality: str) -> None:
        if isinstance(encoder, FeatureStore):
            _name(encoder, modality)
            if self.layers == "all":
                raise ValueError(f"'{name}' is a feature store, which holds one layer: name the encoder instead.")
        elif self.reader is None:
            raise ValueError(f"'{name}' is an encoder: pass data for it to encode, or a feature store instead of it.")
        elif not is_encoder(encoder):
            raise ValueError(f"'{name}': encoders that stand side by side are names or FrozenEncoders.")
        for one in encoder if isinstance(encoder, (list, tuple)) else [encoder]:
            if isinstance(one, FrozenEncoder) and one.modality != modality:
                raise ValueError(f"'{one.name}' is an encoder of {one.modality}, among encoders of {modality}.")

    def load(self, name: str, encoder: CandidateLike, modality: str) -> Candidate:
        """Return one encoder with its features of all readable items.

        Raises:
            ValueError: If it is of another modality, gives all items the same vector, or there is no data for it.
        """
        encoder = encoder if isinstance(encoder, FeatureStore) else as_encoder(encoder, modality)
        self._check(name, encoder, modality)
        if isinstance(encoder, FeatureStore):
            width = StoreVectors(encoder, modality, np.arange(1)).take(np.arange(1)).shape[1]
            found = Candidate(name, modality, encoder, Cost(None, None, width), [width])
        else:
            found = self._encoded(name, encoder)
        check_spaces([StoreVectors(found.store, modality, np.arange(len(found.store)), name=name)], 1)
        return found

    def _encoded(self, name: str, frozen: FrozenEncoder) -> Candidate:
        widths: Sequence[int] = [frozen.get_embedding_dimension()]
        if self.layers == "all" and len(frozen.parts) == 1:
            every = AllLayers(frozen.encoder, default_pooling(frozen))
            frozen, widths = FrozenEncoder(every), every.widths
        frozen.to(default_device())
        if len(frozen.parts) == 1:
            store = self._extracted(name, frozen)
        else:
            store = join_encoders([self._extracted(part.name, part) for part in frozen.parts])
        cost = Cost(frozen.num_parameters(), self._milliseconds(frozen, store), widths[-1])
        return Candidate(name, frozen.modality, store, cost, widths)

    def _extracted(self, name: str, frozen: FrozenEncoder) -> FeatureStore:
        assert self.reader is not None
        dtype = "float32" if self.path is None else "float16"
        extraction = pooled_extraction(frozen, dtype=dtype, batch_size=self.batch_size, strict=self.strict)
        path = None if self.path is None else self.path / _folder_name(name, frozen)
        progress = self.show_progress_bar
        return extract_features(self.reader, extraction, default_device(), path, True, "local", progress)

    @torch.no_grad()
    def _milliseconds(self, encoder: FrozenEncoder, store: FeatureStore) -> float:
        """Time the encoder on the first items that it could encode, one a pair."""
        assert self.reader is not None
        key, bad = encoder.modality, {entry.index for entry in store.skipped}
        good = ((place, pair) for place, pair in enumerate(self.reader.read()) if place not in bad)
        few = [(place, Pair({key: pair.items[key][:1]})) for place, pair in islice(good, TIMED_ITEMS)]
        batch = read_batch(few, {key: encoder}, strict=True).inputs[key]

        def run() -> None:
            encoder(to_device(dict(batch), default_device()))
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()

        return 1000 * settled_seconds(run) / len(few)


def settled_seconds(run: Callable[[], object]) -> float:
    """Return the seconds of the fastest run, after one that is not timed and as many as it takes to settle."""
    run()
    fastest, settled = float("inf"), 0
    for _ in range(MOST_RUNS):
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        settled = settled + 1 if seconds > FASTER * fastest else 0
        fastest = min(fastest, seconds)
        if settled == SETTLED_RUNS:
            break
    return fastest


def on_common_items(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates with the items that all have, as :func:`freezealign.features.beside.match_items` does."""
    stores = match_items([candidate.store for candidate in candidates], [candidate.name for candidate in candidates])
    return [replace(candidate, store=store) for candidate, store in zip(candidates, stores)]


def _identity(reader: PairReader) -> dict[str, Any]:
    """Return what tells the data from others, and from the same pairs in another order."""
    digest, count = hashlib.sha256(), 0
    for pair in reader.read():
        texts = [item for items in pair.items.values() for item in items if isinstance(item, str)]
        digest.update(json.dumps([pair.id, texts]).encode())
        count += 1
    return {"pairs": count, "sha256": digest.hexdigest()}


def _folder_name(name: str, encoder: FrozenEncoder) -> str:
    """Return a name that another encoder, or another preprocessing, does not have."""
    identity = json.dumps([encoder.identity["fingerprint"], encoder.identity["preprocessing"]], sort_keys=True)
    readable = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)[:80]
    return f"{encoder.modality}-{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
