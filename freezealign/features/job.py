"""An extraction from beginning to end: into memory, or into a folder where it can be interrupted and taken up again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from freezealign.data.reader import PairReader
from freezealign.features.extract import Extraction, extract_shards
from freezealign.features.folder import StoreFolder
from freezealign.features.store import FeatureStore
from freezealign.inputs import Skipped

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
    if not (reuse and StoreFolder(path).exists and StoreFolder(path).complete):
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

    Raises:
        MemoryError: If they will not fit; known as soon as the first batches tell their size.
        ValueError: If there is no pair that can be read.
    """
    watch, shards = _MemoryWatch(reader.count, extraction), []
    with extraction.settled(reader, device):
        for _, shard in extract_shards(reader, extraction, device, show_progress_bar=show_progress_bar, watch=watch):
            shards.append(shard)
            watch.next_shard()
    skipped = [entry for shard in shards for entry in shard.skipped]
    _check_any([shard for shard in shards if shard.columns], skipped)
    columns, source = [shard.columns for shard in shards], "".join(shard.source for shard in shards)
    store = FeatureStore.from_shards(extraction.origins, columns, skipped, source)
    _log_skipped(store)
    return store


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
        if not (folder.exists and folder.complete):
            stack.enter_context(extraction.settled(reader, device))
        request = extraction.request()
        if folder.exists and folder.complete:  # no encoder runs, so it makes no difference what would run it
            begun = folder.manifest()["modalities"]
            for name in request["modalities"].keys() & begun.keys():
                request["modalities"][name] |= {key: begun[name][key] for key in ["engine"] if key in begun[name]}
        stack.enter_context(folder.writing(request, fingerprint))
        known = fingerprint is not None and folder.manifest().get("data") == fingerprint
        done = {number: "" if known else folder.source(number) for number in folder.finished()}
        if done:
            logger.info("going on in %s: %d shards are done", path, len(done))
        if engine == "ray":
            from freezealign.features.cluster import extract_with_ray

            extract_with_ray(reader, extraction, folder, done)
        else:
            for number, shard in extract_shards(reader, extraction, device, done, show_progress_bar):
                folder.write(number, shard)
        numbers = folder.finished()
        files = [folder.files(number) for number in numbers]
        _check_any([shard for shard in files if shard], [e for number in numbers for e in folder.skipped(number)])
        folder.finish(len(numbers))
    store = FeatureStore.open(path)
    _log_skipped(store)
    return store


def _check_any(shards: Sequence[Any], skipped: Sequence[Skipped]) -> None:
    if not shards:
        reasons = "; ".join(f"pair {entry.index}: {entry.reason}" for entry in skipped[:3])
        raise ValueError(f"there is no pair that can be read. {reasons or 'The data is empty.'}")


def _log_skipped(store: FeatureStore) -> None:
    if store.skipped:
        first, count = store.skipped[0], len(store.skipped)
        logger.warning(
            "skipped %d of %d pairs; the first is %d: %s", count, len(store) + count, first.index, first.reason
        )


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
