"""Encoders that may be paired: their features on one set of data, and what they cost."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler

from freezealign.alignment.vectors import StoreVectors
from freezealign.batch import default_device, to_device
from freezealign.data.pairs import Pair
from freezealign.data.reader import PairReader
from freezealign.encoders import FrozenEncoder
from freezealign.encoders.layers import AllLayers
from freezealign.features import SHARD_SIZES, FeatureStore
from freezealign.features.extract import Extraction
from freezealign.features.job import extract_features
from freezealign.features.read import read_pair
from freezealign.files import claim, exclusive
from freezealign.inputs import InputError
from freezealign.space.recipes import as_encoder, default_pooling

logger = logging.getLogger(__name__)

CandidateLike = str | FrozenEncoder | FeatureStore
TIMED_ITEMS = 16
SETTLED_RUNS, MOST_RUNS, FASTER = 5, 50, 0.95
"""An encoder is timed until so many runs in a row are not below this share of the fastest, or so many in all: what runs
first finds a machine that takes a second or two to wake up."""


@dataclass(frozen=True)
class Cost:
    """What an encoder costs; ``None`` where only its features are known.

    Args:
        parameters: Of the encoder.
        milliseconds: To encode an item, read before, in a batch of 16 on this machine: the fastest run, once settled.
        dim: Width of its last layer.
    """

    parameters: int | None
    milliseconds: float | None
    dim: int


@dataclass
class Candidate:
    """An encoder with its features.

    Args:
        name: What the ranking calls it.
        modality: Of its features in the store.
        store: Its features.
        cost: What it costs.
        widths: Of its layers, one after another in each vector, where there are several.
    """

    name: str
    modality: str
    store: FeatureStore
    cost: Cost
    widths: Sequence[int] = ()

    @property
    def layers(self) -> int:
        """How many layers its features hold."""
        return max(1, len(self.widths))

    def vectors(self, items: np.ndarray, layer: int) -> StoreVectors:
        """Return its vectors of some items at one of its layers, counted from 0."""
        start = sum(self.widths[:layer])
        columns = slice(start, start + self.widths[layer]) if self.widths else slice(None)
        return StoreVectors(self.store, self.modality, items, columns, self.name)


def named(encoders: Sequence[CandidateLike] | Mapping[str, CandidateLike], what: str) -> dict[str, CandidateLike]:
    """Return encoders by name.

    Raises:
        ValueError: If there is none, or two have one name.
    """
    if isinstance(encoders, (str, FrozenEncoder, FeatureStore)):
        encoders = [encoders]
    if not isinstance(encoders, Mapping):
        entries = [(_name(encoder, what), encoder) for encoder in encoders]
        encoders = dict(entries)
        if len(encoders) < len(entries):
            names = [name for name, _ in entries]
            raise ValueError(f"two {what} encoders have one name: {names}; give them names: {{'name': encoder, …}}.")
    if not encoders:
        raise ValueError(f"there is no {what} encoder to compare: name at least one on each side.")
    return dict(encoders)


def _name(encoder: CandidateLike, what: str) -> str:
    if isinstance(encoder, FeatureStore):
        return encoder.origins[_stored_modality(encoder, what)].name
    return encoder if isinstance(encoder, str) else encoder.name


def _stored_modality(store: FeatureStore, what: str) -> str:
    if what not in store.origins:
        raise ValueError(f"{store} has no {what} features; it has {sorted(store.origins)}.")
    return what


class CandidateLoader:
    """Gives the features of encoders, from stores where they are.

    Args:
        data: Pairs that can be read as often as there are encoders; ``None`` if all features are in stores.
        modalities: Of the two sides.
        path: Folder with a store for each encoder; features that are not there yet are kept there.
        layers: ``last``, or ``all``.
        batch_size: Items a forward pass.
        show_progress_bar: Show progress if it takes longer than a second.
    """

    def __init__(
        self,
        data: Any,
        modalities: Sequence[str],
        path: Path | None,
        layers: str,
        batch_size: int,
        show_progress_bar: bool,
    ) -> None:
        if layers not in ("last", "all"):
            raise ValueError(f"layers is 'last' or 'all', got {layers!r}.")
        if isinstance(data, Iterator):
            raise ValueError("the data is read once for every encoder, and an iterator only once: pass a list.")
        if isinstance(getattr(data, "sampler", None), RandomSampler):
            raise ValueError("a DataLoader that shuffles gives every encoder another order: pass shuffle=False.")
        self.reader = None if data is None else PairReader(data, modalities)
        self.path, self.layers = path, layers
        self.batch_size, self.show_progress_bar = batch_size, show_progress_bar
        if path is not None and self.reader is not None:
            with exclusive(path):
                claim(path / "data.json", _identity(self.reader), "cache of features of these pairs in this order")

    def load(self, name: str, encoder: CandidateLike, modality: str) -> Candidate:
        """Return one encoder with its features of all readable items.

        Raises:
            ValueError: If its features have to be computed and there is no data, or every layer is asked of a store.
        """
        if isinstance(encoder, FeatureStore):
            if self.layers == "all":
                raise ValueError(f"'{name}' is a feature store, which holds one layer: name the encoder instead.")
            modality = _stored_modality(encoder, modality)
            width = StoreVectors(encoder, modality, np.arange(1)).all().shape[1]
            return Candidate(name, modality, encoder, Cost(None, None, width))
        frozen = as_encoder(encoder, modality)
        if self.reader is None:
            raise ValueError(f"'{name}' is an encoder: pass data for it to encode, or a feature store instead of it.")
        if frozen.modality != modality:
            raise ValueError(f"'{name}' is an encoder of {frozen.modality}, among encoders of {modality}.")
        widths: Sequence[int] = ()
        if self.layers == "all":
            every = AllLayers(frozen.encoder, default_pooling(frozen))
            frozen, widths = FrozenEncoder(every), every.widths
        frozen.to(default_device())
        store, cost = self._extract(name, frozen), self._cost(frozen)
        return Candidate(name, modality, store, replace(cost, dim=widths[-1]) if widths else cost, widths)

    def _extract(self, name: str, encoder: FrozenEncoder) -> FeatureStore:
        extraction = Extraction(
            encoders={encoder.modality: encoder},
            poolings={encoder.modality: default_pooling(encoder)},
            dtype="float32" if self.path is None else "float16",
            batch_size=self.batch_size,
            shard_size=SHARD_SIZES["pooled"],
        )
        path = None if self.path is None else self.path / _folder_name(name, encoder)
        side = self._side(encoder.modality)
        device = default_device()
        return extract_features(side, extraction, device, path, True, "local", self.show_progress_bar)

    def _side(self, modality: str) -> Iterable[Any]:
        assert self.reader is not None
        return (_Side if self.reader.count is None else _CountedSide)(self.reader, modality)

    @torch.no_grad()
    def _cost(self, encoder: FrozenEncoder) -> Cost:
        """Time the encoder on the first items that can be read."""
        batch = encoder.collate(list(itertools.islice(self._readable(encoder), TIMED_ITEMS)))

        def run() -> None:
            encoder(to_device(dict(batch), default_device()))
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()

        count = min(TIMED_ITEMS, len(next(iter(batch.values()))))
        return Cost(encoder.num_parameters(), 1000 * settled_seconds(run) / count, encoder.get_embedding_dimension())

    def _readable(self, encoder: FrozenEncoder) -> Iterator[Any]:
        for pair in PairReader(self._side(encoder.modality), [encoder.modality]).read():
            try:
                yield read_pair(pair, {encoder.modality: encoder})[0].items[encoder.modality][0]
            except InputError:
                continue


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


def _identity(reader: PairReader) -> dict[str, Any]:
    """Return what tells the data from others, and from the same pairs in another order."""
    digest, count = hashlib.sha256(), 0
    for pair in reader.read():
        texts = [item for items in pair.items.values() for item in items if isinstance(item, str)]
        digest.update(json.dumps([pair.id, texts]).encode())
        count += 1
    return {"pairs": count, "sha256": digest.hexdigest()}


class _Side:
    """One modality of pairs."""

    def __init__(self, reader: PairReader, modality: str) -> None:
        self.reader, self.modality = reader, modality

    def iter_from(self, start: int) -> Iterator[Pair]:
        """Yield what belongs to the modality in the pairs from number ``start`` on."""
        for pair in self.reader.read(start):
            yield Pair({self.modality: pair.items[self.modality]}, pair.id)

    def __iter__(self) -> Iterator[Pair]:
        return self.iter_from(0)


class _CountedSide(_Side):
    """One modality of pairs whose number is known."""

    def __len__(self) -> int:
        return self.reader.count or 0


def common_items(candidates: Sequence[Candidate]) -> list[np.ndarray]:
    """Return for each candidate the positions of the items that all have, in the order of the first.

    Raises:
        ValueError: If they have none in common, or two items of one have the same id.
    """
    ids = [candidate.store.ids for candidate in candidates]
    places = [dict(zip(names, range(len(names)))) for names in ids]
    for candidate, names, place in zip(candidates, ids, places):
        if len(place) < len(names):
            twice = next(name for position, name in enumerate(names) if place[name] != position)
            raise ValueError(f"two items of '{candidate.name}' have the id {twice!r}; items are matched by their ids.")
    common = [name for name in ids[0] if all(name in place for place in places)]
    if not common:
        raise ValueError(f"the features of {[candidate.name for candidate in candidates]} have no item id in common.")
    everything = len(set().union(*ids))
    if len(common) < everything:
        left_out = everything - len(common)
        logger.warning("%d of %d items are left out, because not every encoder has them", left_out, everything)
    return [np.array([place[name] for name in common]) for place in places]


def _folder_name(name: str, encoder: FrozenEncoder) -> str:
    """Return a name that another encoder, or another preprocessing, does not have."""
    identity = json.dumps([encoder.identity["fingerprint"], encoder.identity["preprocessing"]], sort_keys=True)
    readable = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)[:80]
    return f"{encoder.modality}-{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
