"""An extraction from beginning to end: into memory, or into a folder where it can be interrupted and taken up again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from freezealign.data.pairs import Pair
from freezealign.data.reader import PairReader
from freezealign.features.extract import Extraction, extract_shards
from freezealign.features.folder import StoreFolder
from freezealign.features.store import FeatureStore
from freezealign.inputs import Skipped, skipped_pairs
from freezealign.words import printable

logger = logging.getLogger(__name__)

Engine = Literal["local", "ray"]


def extract_features(
    data: PairReader | str | PathLike[str] | Iterable[Any],
    extraction: Extraction,
    device: torch.device,
    path: Path | None,
    reuse: bool,
    engine: Engine,
    show_progress_bar: bool,
) -> FeatureStore:
    """Do what :meth:`freezealign.FreezeAlign.extract_features` says."""
    if engine not in get_args(Engine):
        raise ValueError(f"unknown engine {engine!r}; choose one of {get_args(Engine)}.")
    reader = data if isinstance(data, PairReader) else PairReader(data, list(extraction.encoders))
    if path is None:
        if engine == "ray":
            raise ValueError("engine='ray' needs a path to write to.")
        return extract_to_memory(reader, extraction, device, show_progress_bar)
    if not (reuse and StoreFolder(path).complete):
        return extract_to_folder(reader, extraction, device, path, show_progress_bar, engine)
    store = FeatureStore.open(path)
    if store.level == "tokens":  # which hold what pooled vectors are made of
        extraction = replace(extraction, poolings={})
    store.check(extraction.origins)
    return store


def extract_to_memory(
    reader: PairReader, extraction: Extraction, device: torch.device, show_progress_bar: bool
) -> FeatureStore:
    """Return the features of every readable pair.

    Where the data raises and cannot go on, the pairs before it are kept, and the one at which it ended is listed as
    skipped; with ``strict``, it is raised.

    Raises:
        MemoryError: If they will not fit; known as soon as the first batches tell their size.
        ValueError: If there is no pair that can be read.
    """
    watch, shards = _MemoryWatch(reader.count, extraction), []
    if not extraction.strict:
        reader = _UntilItRaises(reader)
    with extraction.settled(reader, device):
        for _, shard in extract_shards(reader, extraction, device, show_progress_bar=show_progress_bar, watch=watch):
            shards.append(shard)
            watch.next_shard()
    skipped = [entry for shard in shards for entry in shard.skipped]
    if isinstance(reader, _UntilItRaises) and (ended := reader.ended):
        skipped.append(ended)
        logger.warning("%s. The features of what was read before it are kept.", ended.reason)
    columns, source = [shard.columns for shard in shards], "".join(shard.source for shard in shards)
    _check_skipped(sum(len(shard.get("items/ids.lengths", ())) for shard in columns), skipped)
    return FeatureStore.from_shards(extraction.origins, columns, skipped, source)


def extract_to_folder(
    reader: PairReader,
    extraction: Extraction,
    device: torch.device,
    path: Path,
    show_progress_bar: bool,
    engine: Engine,
) -> FeatureStore:
    """Write the features of every readable pair into ``path``, going on where an earlier run of the same job stopped.

    Raises:
        OSError: If the folder cannot be written; shards already there are kept.
        RuntimeError: If another process is writing to it.
        ValueError: If the store there was begun in another way or of other data, or no pair can be read.
    """
    folder, fingerprint = StoreFolder(path), reader.fingerprint()
    with ExitStack() as stack:
        if not folder.complete:
            stack.enter_context(extraction.settled(reader, device))
        request = extraction.request()
        if folder.complete:  # no encoder runs, so it makes no difference what would run it
            for name, begun in folder.manifest()["modalities"].items():
                if name in request["modalities"]:
                    request["modalities"][name].pop("engine", None)
                    request["modalities"][name] |= {k: v for k, v in begun.to_json().items() if k == "engine"}
        stack.enter_context(folder.writing(request, fingerprint))
        known = fingerprint is not None and folder.manifest().get("data") == fingerprint
        done = {number: "" if known else folder.entry(number).get("source", "") for number in folder.finished()}
        if done:
            logger.info("going on in %s: %d shards are done", path, len(done))
        if engine == "ray":
            from freezealign.features.cluster import extract_with_ray

            extract_with_ray(reader, extraction, folder, done)
        else:
            for shard in extract_shards(reader, extraction, device, done, show_progress_bar=show_progress_bar):
                folder.write(*shard)
        entries = [folder.entry(number) for number in folder.finished()]
        counts = [entry["files"].get("items/ids.lengths", {"rows": 0})["rows"] for entry in entries]
        _check_skipped(sum(counts), [one for entry in entries for one in entry["skipped"]])
        folder.finish(len(entries))
    return FeatureStore.open(path)


def _check_skipped(kept: int, skipped: Sequence[Skipped]) -> None:
    """Log what was left out; raise a ``ValueError`` if nothing is left."""
    if not kept:
        reasons = "; ".join(f"pair {entry.index}: {entry.reason}" for entry in skipped[:3])
        raise ValueError(f"there is no pair that can be read. {reasons or 'The data is empty.'}")
    if skipped:
        first, pairs = skipped[0], len(skipped_pairs(skipped))
        told = (pairs, kept + pairs, len(skipped) - pairs, first.index, first.item and f" ({first.item})")
        message = "skipped %d of %d pairs, and %d items of others; the first is %d%s: %s"
        logger.warning(message, *told, printable(first.reason))


class _UntilItRaises(PairReader):
    """A reader whose data ends where it raises, once something was read; ``ended`` says where and why."""

    def __init__(self, reader: PairReader) -> None:
        self.__dict__ |= vars(reader)
        self._reader = reader
        self.ended: Skipped | None = None

    def read(self, start: int = 0) -> Iterator[Pair]:
        """Yield the pairs from number ``start`` on."""
        position = start
        try:
            for pair in self._reader.read(start):
                yield pair
                position += 1
        except RuntimeError as error:
            if position == 0:
                raise
            self.ended = Skipped(position, printable(f"{error}; what follows was not read"))


class _MemoryWatch:
    """Raises before the machine runs out of memory.

    Args:
        total: Number of pairs, where the data can tell.
        extraction: Its batches and shards.
    """

    def __init__(self, total: int | None, extraction: Extraction) -> None:
        self.total, self.extraction = total, extraction
        self.batches = self.before = self.now = 0

    def next_shard(self) -> None:
        """Note that a shard is full."""
        self.before, self.now = self.before + self.now, 0

    def __call__(self, nbytes: int) -> None:
        """Compare what is still to come with what is free; a full shard is joined, which takes its size once more."""
        import psutil

        self.batches, self.now = self.batches + 1, nbytes
        done = self.batches * self.extraction.batch_size
        per_pair = (self.before + nbytes) / done
        left = max((self.total or done) - done, 0)
        needed = per_pair * (left + min(self.extraction.shard_size, done + left))
        free = psutil.virtual_memory().available
        if needed > free:
            raise MemoryError(
                f"the frozen features need about {per_pair * (done + left) / 2**30:.1f} GiB "
                f"({per_pair / 2**10:.0f} KiB a pair), and {free / 2**30:.1f} GiB of memory are free. Keep them on "
                "disk: model.extract_features(data, path); or use fit(…, cache_features=False), which encodes anew in "
                "every epoch."
            )
