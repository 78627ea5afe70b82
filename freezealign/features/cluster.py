"""The same extraction as a Ray Data job: one shard is one task, so that a lost task is done again."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from freezealign.batch import default_device
from freezealign.data.reader import PairReader
from freezealign.features.extract import Extraction, check_source, extract_shards
from freezealign.features.folder import StoreFolder


class ShardWorker:
    """What one Ray actor does: keep the encoders, and extract the shards it is given.

    Args:
        job: Reference to data and extraction in Ray's object store.
        path: The store's folder, which every machine of the cluster sees under this name.
    """

    def __init__(self, job: Any, path: str) -> None:
        import ray

        self.reader, self.extraction = ray.get(job[0])
        self.folder, self.device = StoreFolder(Path(path)), default_device()
        for encoder in self.extraction.encoders.values():
            encoder.to(self.device)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Extract and write the shards with these numbers."""
        for number in batch["shard"].tolist():
            shards = extract_shards(self.reader, self.extraction, self.device, only=number, show_progress_bar=False)
            for own in shards:
                self.folder.write(*own)
        return batch


def extract_with_ray(reader: PairReader, extraction: Extraction, folder: StoreFolder, done: Mapping[int, str]) -> None:
    """Write every shard that is not done, on the Ray cluster this process is connected to, or on a local one.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ValueError: If the data cannot be read from the middle.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError("engine='ray' needs Ray; run: pip install 'freezealign[scale]'") from None
    total = reader.count
    if total is None:
        raise ValueError(
            "engine='ray' needs data of known length that can be read from any position: a list, a datasets.Dataset, "
            f"a folder or Parquet files, not {type(reader.data).__name__}."
        )
    size = extraction.shard_size
    for number in (number for number, before in done.items() if before):
        check_source(done[number], reader.digests(islice(reader.read(number * size), size)), number * size)
    shards = sorted(set(range(-(-total // size))) - set(done))
    if not shards:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)
    try:
        tasks = ray.data.from_items([{"shard": number} for number in shards], override_num_blocks=len(shards))
        resources = ray.cluster_resources()
        gpus = 1 if resources.get("GPU") else 0
        workers = max(1, int(resources["GPU" if gpus else "CPU"]))
        tasks.map_batches(
            ShardWorker,
            # the reference in a list, so that Ray hands over the reference and not its content
            fn_constructor_args=([ray.put((reader, extraction))], str(folder.path.resolve())),
            batch_size=1,
            num_gpus=gpus,
            concurrency=(1, min(workers, len(shards))),
        ).materialize()
    finally:
        if started:
            ray.shutdown()
