"""A small extraction for tests that interrupt it, and the processes that run it."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from freezealign import FeatureStore, FreezeAlign, FrozenEncoder

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["freezealign", "freezealign.features.job", "jobs"])
SECONDS = 60
"""After which a process that should have ended is taken for hanging."""


def pixels(items: list[Image.Image]) -> np.ndarray:
    time.sleep(0.002)
    return np.stack([np.asarray(item.resize((4, 4)), np.float32).reshape(-1) / 255 for item in items])


def letters(items: list[str]) -> list[np.ndarray]:
    """One token a letter."""
    time.sleep(0.002)
    return [np.eye(32, dtype=np.float32)[[ord(letter) % 32 for letter in item]] for item in items]


def make_model() -> FreezeAlign:
    encoders = [FrozenEncoder(pixels, "image"), FrozenEncoder(letters, "text")]
    return FreezeAlign(encoders, dim=8, seed=0, device="cpu")


def make_pairs(n: int = 60) -> list[dict[str, Any]]:
    """Pairs with one to three captions, longer and longer; every eleventh lacks its image."""
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(n):
        image = Image.fromarray(rng.integers(0, 256, (5 + i % 7, 6, 3), dtype=np.uint8))
        texts = [f"caption {j} of {i}" + "…" * i for j in range(1 + i % 3)]
        pairs.append({"image": None if i % 11 == 10 else image, "text": texts, "id": f"picture-{i}"})
    return pairs


def extract(path: Path | None, data: Any = None, model: FreezeAlign | None = None, **options: Any) -> FeatureStore:
    """Extract 60 pairs in 9 shards of 3 batches, unless told otherwise."""
    options = {"batch_size": 3, "shard_size": 7, "show_progress_bar": False, **options}
    return (model or make_model()).extract_features(make_pairs() if data is None else data, path, **options)


def start(target: Any, *args: Any) -> Any:
    """Run a function of an importable module in a new process."""
    process = PROCESSES.Process(target=target, args=args)
    process.start()
    return process


def ended(process: Any) -> int:
    """Wait for a process and return its exit code."""
    process.join(SECONDS)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def files_of(folder: Path) -> dict[str, Any]:
    """Every file below a folder, hidden ones too; but for how the data was known, by its files or by its pairs."""

    def content(path: Path) -> Any:
        if path.suffix != ".json":
            return path.read_bytes()
        return {key: value for key, value in json.loads(path.read_text()).items() if key not in ("data", "source")}

    return {str(path.relative_to(folder)): content(path) for path in folder.rglob("*") if path.is_file()}
