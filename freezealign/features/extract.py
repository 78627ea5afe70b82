"""Run the frozen encoders over paired data, once; shard by shard, so that nothing finished is ever lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import count, islice
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import numpy as np
import torch

from freezealign.batch import Features, to_device
from freezealign.data.digest import first_difference
from freezealign.data.pairs import Pair
from freezealign.data.reader import PairReader
from freezealign.encoders import FrozenEncoder
from freezealign.encoders.engines import COMPARED
from freezealign.encoders.joint import JointEncoder, batch_of
from freezealign.features.columns import Runs
from freezealign.features.frozen import Origin
from freezealign.features.read import ReadBatch, augmented, collate, read_batch, without_failures
from freezealign.features.shard import Shard, ShardBuilder, StoreDtype
from freezealign.modality import modality_of
from freezealign.modules import Pooling
from freezealign.prefetch import ordered_map, prefetch

READERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Extraction:
    """What is to be done to every pair; two runs with equal extractions give equal bytes.

    Args:
        encoders: The frozen encoder of each modality.
        poolings: What pools the tokens of each modality before they are stored; none at level ``tokens``.
        dtype: What embeddings are stored as.
        batch_size: Pairs a forward pass.
        shard_size: Pairs a shard; a batch never spans two.
        views: Rows an image has: itself, and ``views - 1`` augmented ones.
        strict: Raise at the first bad item instead of leaving its pair out.
    """

    encoders: Mapping[str, FrozenEncoder]
    poolings: Mapping[str, Pooling]
    dtype: StoreDtype
    batch_size: int
    shard_size: int
    views: int = 1
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_size", "views"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.dtype not in get_args(StoreDtype):
            raise ValueError(f"unknown dtype {self.dtype!r}; choose one of {get_args(StoreDtype)}.")

    @property
    def origins(self) -> dict[str, Origin]:
        """The origin of each modality's features."""
        modes = {name: pooling.mode for name, pooling in self.poolings.items()}
        return {name: Origin.of(encoder, modes.get(name)) for name, encoder in self.encoders.items()}

    def request(self) -> dict[str, Any]:
        """Return what the features depend on, as JSON."""
        return {
            "level": "pooled" if self.poolings else "tokens",
            "dtype": self.dtype,
            "shard_size": self.shard_size,
            "batch_size": self.batch_size,
            "views": self.views,
            "modalities": {name: origin.to_json() for name, origin in self.origins.items()},
        }

    @contextmanager
    def settled(self, reader: PairReader, device: torch.device) -> Iterator[None]:
        """Let nothing run the encoders while the block runs but what the first pairs decide."""

        @cache
        def first() -> dict[str, Features]:
            if not reader.is_seekable:
                return {}
            try:
                return read_batch(enumerate(islice(reader.read(0), COMPARED)), self.encoders, strict=False).inputs
            except Exception:  # which the extraction meets again, and tells
                return {}

        def batch(name: str, number: int) -> Features | None:
            found = first().get(name)
            if found is not None and isinstance(self.encoders[name], JointEncoder):
                found = batch_of(found, number)
            return None if found is None else to_device(found, device)

        with ExitStack() as stack:
            for name, encoder in self.encoders.items():
                for number, part in enumerate(encoder.parts):
                    stack.enter_context(part.engine.settled(part.encoder, partial(batch, name, number)))
            yield


class Run(NamedTuple):
    """The pairs of one batch, not yet read: their shard, and the position of the first in the data."""

    shard: int
    start: int
    pairs: list[Pair]


def extract_shards(
    reader: PairReader,
    extraction: Extraction,
    device: torch.device,
    done: Mapping[int, str] = MappingProxyType({}),
    only: int | None = None,
    show_progress_bar: bool = True,
    watch: Callable[[int], None] = lambda nbytes: None,
) -> Iterator[tuple[int, Shard]]:
    """Yield the number and content of every shard that is not done yet, in order.

    Pictures are read and preprocessed in threads while the model works on those before.

    Args:
        reader: Of the pairs.
        extraction: What to do with them.
        device: Where the encoders are.
        done: Numbers of the shards to leave out, and the digests of the pairs they were made of, which are compared
            with those of ``reader``; an empty one is not.
        only: The one shard to extract, of data that can be read from anywhere.
        show_progress_bar: Show progress if it takes longer than a second.
        watch: Called after every batch with the bytes that the shard at work has so far.

    Raises:
        InputError: With ``strict``, at the first item that cannot be read or whose features are not finite.
        ValueError: If a pair lacks a modality, or a shard that is done was made of other pairs.
    """
    from tqdm.auto import tqdm

    change = partial(augmented, encoders=extraction.encoders, views=extraction.views)

    def read(run: Run | Exception) -> tuple[Run, str, ReadBatch]:
        if isinstance(run, Exception):
            raise run
        pairs = enumerate(run.pairs, run.start)
        return run, reader.digests(run.pairs), read_batch(pairs, extraction.encoders, extraction.strict, change)

    size = extraction.shard_size
    if only is None:
        runs = _runs(reader, extraction, done)
    else:
        runs = _runs_of(only, islice(reader.read(only * size), size), extraction)
    bar_options = {"total": reader.count, "initial": min(len(done) * size, reader.count or 0)}
    builder, filled = ShardBuilder(extraction.dtype), 0
    with tqdm(desc="Frozen features", unit="pair", delay=1, disable=not show_progress_bar, **bar_options) as bar:
        for run, digests, batch in prefetch(ordered_map(read, _errors_last(runs), READERS)):
            _encode(batch, extraction, device, builder)
            filled, builder.source = filled + len(run.pairs), builder.source + digests
            watch(builder.nbytes)
            bar.update(len(run.pairs))
            if filled == size:
                yield run.shard, builder.build()
                builder, filled = ShardBuilder(extraction.dtype), 0
    if filled:
        yield run.shard, builder.build()


def _runs(reader: PairReader, extraction: Extraction, done: Mapping[int, str]) -> Iterator[Run]:
    """Yield the batches of every shard that is not done; make sure that those that are were made of these pairs.

    What is done and need not be compared is not read where reading can begin anywhere.
    """
    size, pairs, reached = extraction.shard_size, None, 0
    for shard in (number for number in count() if done.get(number) != ""):
        if pairs is None or (reader.is_seekable and shard != reached):
            pairs = reader.read(shard * size)
        elif shard != reached:
            pairs = islice(pairs, (shard - reached) * size, None)
        own, reached = islice(pairs, size), shard + 1
        if shard in done:
            check_source(done[shard], reader.digests(own), shard * size)
            continue
        runs = _runs_of(shard, own, extraction)
        if (first := next(runs, None)) is None:
            check_source("".join(done[number] for number in done if number > shard), "", shard * size)
            return
        yield first
        yield from runs


def check_source(before: str, now: str, start: int) -> None:
    """Raise a ``ValueError`` that names the first pair that has changed; the digests begin at pair ``start``."""
    if (place := first_difference(before, now)) is not None:
        raise ValueError(
            f"the data has changed since these features were begun, from pair {start + place} on: it was edited, put "
            "in another order, made longer or shorter. Extract from the data as it was, or into another folder."
        )


def _errors_last(runs: Iterator[Run]) -> Iterator[Run | Exception]:
    """Yield ``runs``, and an error of the data when its turn has come, so that nothing read before it is lost."""
    try:
        yield from runs
    except Exception as error:
        yield error


def _runs_of(shard: int, pairs: Iterator[Pair], extraction: Extraction) -> Iterator[Run]:
    """Yield the batches of one shard."""
    for start in count(shard * extraction.shard_size, extraction.batch_size):
        if not (run := list(islice(pairs, extraction.batch_size))):
            return
        yield Run(shard, start, run)


@torch.no_grad()
def _encode(batch: ReadBatch, extraction: Extraction, device: torch.device, builder: ShardBuilder) -> None:
    """Run the encoders over a batch and add those of its pairs whose features are finite."""
    everyone = batch.pairs

    def encode(pairs: list[Pair]) -> dict[str, Features]:
        inputs = batch.inputs if pairs is everyone else collate(pairs, extraction.encoders)
        return {key: extraction.encoders[key](to_device(own, device)) for key, own in inputs.items()}

    outputs = without_failures(batch, extraction.strict, encode, extraction.encoders)
    limit = float(np.finfo(np.float16).max) if extraction.dtype == "float16" else float("inf")
    rows, faults = {}, {}
    for key, output in outputs.items():
        rows[key] = Runs(np.array([len(pair.items[key]) for pair in batch.pairs]))
        pooling = extraction.poolings.get(key)
        if pooling is not None:
            output |= {"sentence_embedding": pooling(output)["sentence_embedding"]}
        faults[key] = row_faults(output, pooling is not None, limit)
    kept = [number for number in range(len(batch.pairs)) if _left_of(batch, number, rows, faults, extraction)]
    builder.skipped += sorted(batch.skipped, key=lambda entry: entry.index)
    if not kept:
        return
    texts = {}
    for key, output in outputs.items():
        stored = {"sentence_embedding": output["sentence_embedding"]} if key in extraction.poolings else output
        own = rows[key].rows(np.array(kept))
        builder.add_features(key, stored, own[faults[key][own] == 0])
        if extraction.encoders[key].kind == "text":
            texts[key] = [text for number in kept for text in batch.pairs[number].items[key]]
    names = {number: batch.pairs[number].id for number in kept}
    ids = [str(batch.positions[number]) if name is None else name for number, name in names.items()]
    builder.add_items(ids, {key: [len(batch.pairs[number].items[key]) for number in kept] for key in rows}, texts)


def _left_of(
    batch: ReadBatch, number: int, rows: Mapping[str, Runs], faults: Mapping[str, np.ndarray], extraction: Extraction
) -> bool:
    """Take off the captions of a pair whose features have faults, or list it as bad; whether anything is left of it."""
    bad: dict[str, dict[int, str]] = {}
    for key, encoder in extraction.encoders.items():
        wrong = faults[key][rows[key].rows(np.array([number]))]
        places = np.flatnonzero(wrong).tolist()
        bad[key] = {
            place: f"the {key} encoder '{encoder.name}' gave {FAULTS[wrong[place]]} for it." for place in places
        }
        if bad[key] and (len(places) == len(wrong) or modality_of(encoder.kind).augment):
            batch.skip(batch.positions[number], next(iter(bad[key].values())), extraction.strict)
            return False
    for key, told in bad.items():
        if told:
            batch.pairs[number] = batch.skip_items(number, key, told, extraction.strict)
    return True


FAULTS = ("nothing wrong", "values beyond float16 (dtype='float32' keeps them)", "NaN or Inf")


def row_faults(output: Features, pooled: bool, limit: float) -> np.ndarray:
    """Return for each row of an encoder's output what is wrong with it, as a place in ``FAULTS``.

    Args:
        output: Of the encoder, and ``sentence_embedding`` where it was pooled.
        pooled: Whether only the pooled vectors are stored.
        limit: The largest value that can be stored.
    """
    keys = [key for key in ("token_embeddings", "cls_token_embeddings") if output.get(key) is not None]
    finite, largest = [], []
    for key in [*keys, *(["sentence_embedding"] if pooled else [])]:
        values = output[key].flatten(1)
        finite.append(torch.isfinite(values).all(1))
        if key == "sentence_embedding" or not pooled:
            largest.append(values.abs().amax(1))
    beyond = torch.stack(largest).amax(0) > limit
    faults = torch.where(torch.stack(finite).all(0), beyond.long(), torch.full_like(beyond, 2, dtype=torch.long))
    return faults.cpu().numpy()
