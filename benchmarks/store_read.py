"""Shuffled batches out of a store on disk, against the rows of an Arrow file read by ``datasets`` at random.

python benchmarks/store_read.py            # writes benchmarks/RESULTS.md; takes 11 GB of the temporary folder

Both files hold the same float16 vectors. Ours are the batches that ``fit`` trains on, in its order: chunks of
neighbours shuffled in a window of 256 MiB. The other side reads every row where it lies, as a shuffling ``DataLoader``
and as batches of random row numbers do. Each reading starts anew and is cut after some rows; the median counts.
A cold reading follows ``posix_fadvise(DONTNEED)`` on all files.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from report import record
from torch.utils.data import DataLoader

from freezealign import FeatureStore
from freezealign.features import Origin
from freezealign.features.folder import StoreFolder
from freezealign.features.shard import Shard
from freezealign.training.batches import CachedBatches

WIDTHS = {"image": 1280, "text": 512}
SHARD, SHARDS, BATCH = 8192, 184, 1024
ROWS = SHARD * SHARDS
OURS, THEIRS = 400, 8  # batches of one reading
REPEATS = 3
Reader = Callable[[Path], Iterable[Any]]


def blocks() -> Iterator[dict[str, np.ndarray]]:
    """The vectors of each shard: one random block in another order."""
    rng = np.random.default_rng(0)
    block = {name: rng.standard_normal((SHARD, width), np.float32).astype(np.float16) for name, width in WIDTHS.items()}
    for _ in range(SHARDS):
        order = rng.permutation(SHARD)
        yield {name: rows[order] for name, rows in block.items()}


def write_store(path: Path) -> None:
    """Write the vectors as the library does."""
    origins = {name: Origin("random", "random", {}, "mean") for name in WIDTHS}
    ones, folder = np.ones(SHARD, np.int32), StoreFolder(path)
    with folder.writing():
        folder.begin({"level": "pooled", "modalities": {name: asdict(origin) for name, origin in origins.items()}})
        for number, vectors in enumerate(blocks()):
            columns = {"items/ids.utf8": np.full(SHARD, ord("x"), np.uint8), "items/ids.lengths": ones}
            for name, rows in vectors.items():
                columns |= {f"items/{name}": ones, f"{name}/sentence_embedding": rows}
            folder.write(number, Shard(columns))
        folder.finish(SHARDS)


def write_arrow(path: Path) -> None:
    """Write the vectors as ``datasets`` keeps them."""
    types = {name: pa.list_(pa.float16(), width) for name, width in WIDTHS.items()}
    path.mkdir()
    with pa.OSFile(str(path / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, pa.schema(types)) as writer:
        for vectors in blocks():
            arrays = [
                pa.FixedSizeListArray.from_arrays(rows.ravel(), type=types[name]) for name, rows in vectors.items()
            ]
            for batch in pa.table(arrays, names=list(vectors)).to_batches(max_chunksize=1000):
                writer.write_batch(batch)


def ours(path: Path) -> Iterator[Any]:
    """The batches of an epoch."""
    return islice(CachedBatches([FeatureStore.open(path)], BATCH, seed=0).epoch(1), OURS)


def loader(path: Path) -> Iterator[Any]:
    """What a shuffling DataLoader gives."""
    data = Dataset.from_file(str(path / "rows.arrow")).with_format("torch")
    return islice(DataLoader(data, batch_size=BATCH, shuffle=True), THEIRS)  # type: ignore[arg-type]


def random_rows(path: Path) -> Iterator[Any]:
    """Batches of random row numbers as NumPy arrays: no row on its own."""
    data = Dataset.from_file(str(path / "rows.arrow")).with_format("numpy")
    order = np.random.default_rng().permutation(ROWS)
    return (data[order[start : start + BATCH].tolist()] for start in range(0, THEIRS * BATCH, BATCH))


def forget(path: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for file in path.rglob("*.*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def remember(path: Path) -> None:
    """Read the files of a folder into the page cache."""
    for file in path.rglob("*.*"):
        if file.is_file():
            with file.open("rb", buffering=0) as opened:
                while opened.read(2**24):
                    pass


def rate(reader: Reader, path: Path) -> float:
    """Return the rows a second of one reading, from opening the files on."""
    start = time.perf_counter()
    rows = sum(BATCH for _ in reader(path))
    return rows / (time.perf_counter() - start)


def measure(folders: dict[Reader, Path], before: Callable[[Path], None]) -> dict[Reader, float]:
    """Return the median rate of each reader, all read in turn."""
    rates: dict[Reader, list[float]] = {reader: [] for reader in folders}
    for _ in range(REPEATS):
        for reader, path in folders.items():
            before(path)
            rates[reader].append(rate(reader, path))
    return {reader: statistics.median(values) for reader, values in rates.items()}


def lines(cache: str, rates: dict[Reader, float]) -> list[str]:
    """The lines of the table for one state of the page cache."""
    fast = rates[ours]
    return [
        f"| {cache} | {what} | {fast:,.0f} | {rates[reader]:,.0f} | {fast / rates[reader]:.0f} |"
        for reader, what in ((loader, "`DataLoader(shuffle=True)`"), (random_rows, "`dataset[random numbers]`"))
    ]


def main() -> None:
    """Write the files, measure, write the table, delete the files."""
    with tempfile.TemporaryDirectory() as folder:
        store, arrow = Path(folder) / "store", Path(folder) / "arrow"
        size = ROWS * sum(WIDTHS.values()) * 2
        if shutil.disk_usage(folder).free < 3 * size:
            raise OSError(f"{folder} has not {3 * size / 1e9:.0f} GB free; set TMPDIR to a folder that has.")
        write_store(store)
        write_arrow(arrow)
        folders: dict[Reader, Path] = {ours: store, loader: arrow, random_rows: arrow}
        rows = [*lines("warm", measure(folders, remember)), *lines("cold", measure(folders, forget))]
    header = (
        f"{ROWS:,} pairs of {WIDTHS['image']:,} and {WIDTHS['text']} float16 numbers, {size / 1e9:.1f} GB; batches of "
        f"{BATCH:,}. Of the store {OURS * BATCH:,} rows were read at a time, of the Arrow file {THEIRS * BATCH:,}; "
        f"median of {REPEATS}, in turn.\n\n"
        "| page cache | against | store, rows/s | Arrow, rows/s | times faster |\n|---|---|---|---|---|"
    )
    record("Reading a store", header, rows)


if __name__ == "__main__":
    torch.set_num_threads(1)  # several wait for each other where others work too
    main()
