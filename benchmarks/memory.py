"""How memory grows with the data: extraction to disk and an epoch of training, 10,000 to 1,000,000 pairs.

python benchmarks/memory.py            # writes benchmarks/RESULTS.md and docs/images/memory.png; takes 3 GB of disk

Each figure is the peak of a process of its own above that of one which only trains the same model on two pairs.
The encoders are functions that give random vectors, 1,024 and 512 wide; the projectors are tiny, so that what is left
is what the data takes. Needs Linux.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from report import record

from freezealign import FeatureStore, FreezeAlign, FrozenEncoder
from freezealign.encoders.callable import CallableEncoder

PLOT = Path(__file__).parents[1] / "docs" / "images" / "memory.png"
SIZES = (10_000, 100_000, 1_000_000)
BATCH = 1024
WIDTHS = {"a": 1024, "b": 512}


class Pairs:
    """Pairs of numbers, made when they are asked for."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"a": number, "b": number} for number in range(self.size))


class RandomVectors:
    """A function that gives random vectors, whatever it is asked for."""

    def __init__(self, width: int) -> None:
        self.block = np.random.default_rng(0).standard_normal((2 * BATCH, width), np.float32)

    def __call__(self, items: list[int]) -> np.ndarray:
        """Return one vector an item."""
        start = items[0] % BATCH
        return self.block[start : start + len(items)]


def make_model() -> FreezeAlign:
    """Tiny projectors behind functions."""
    encoders = {
        name: FrozenEncoder(CallableEncoder(RandomVectors(width), name, dim=width, fingerprint="random"))
        for name, width in WIDTHS.items()
    }
    return FreezeAlign(encoders, recipe="pooled", dim=8, seed=0)


def work(task: str, size: int, path: str) -> None:
    """Do one task and print the peak of this process in MiB."""
    model = make_model()
    model.fit([{"a": 0, "b": 0}] * 2, epochs=1, show_progress_bar=False)  # loads what training needs
    if task == "extraction":
        model.extract_features(Pairs(size), path, batch_size=BATCH, show_progress_bar=False)
    elif task == "training":
        model.fit(FeatureStore.open(path), schedule="paper", epochs=1, batch_size=BATCH, show_progress_bar=False)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))


def peak(task: str, size: int, path: Path) -> float:
    """Return the peak of a new process that does one task, in MiB."""
    command = [sys.executable, __file__, task, str(size), str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def draw(curves: dict[str, dict[int, float]]) -> None:
    """Plot memory against pairs."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for task, points in curves.items():
        axes.plot(list(points), list(points.values()), marker="o", label=task)
    axes.plot(SIZES, [megabytes(size) for size in SIZES], color="grey", linestyle=":", label="the store on disk")
    axes.set(xscale="log", yscale="log", xlabel="pairs", ylabel="MiB", title="Peak memory above that of two pairs")
    axes.legend()
    figure.savefig(PLOT, dpi=150, bbox_inches="tight")


def megabytes(size: int) -> float:
    """MiB of the vectors of so many pairs in float16."""
    return size * sum(WIDTHS.values()) * 2 / 2**20


def main() -> None:
    """Measure and write the table and the plot."""
    curves: dict[str, dict[int, float]] = {"extraction": {}, "training": {}}
    with tempfile.TemporaryDirectory() as folder:
        idle = peak("nothing", 0, Path(folder))
        for size in SIZES:
            for task, points in curves.items():
                points[size] = peak(task, size, Path(folder) / str(size)) - idle
    draw(curves)
    rows = [
        f"| {size:,} | {megabytes(size):,.0f} | {curves['extraction'][size]:,.0f} | {curves['training'][size]:,.0f} |"
        for size in SIZES
    ]
    header = (
        f"Peak memory in MiB above that of training on two pairs ({idle:.0f} MiB). Training reads a store of up "
        "to 256 MiB whole, a larger one in windows of that size.\n\n"
        "![Memory against the number of pairs](../docs/images/memory.png)\n\n"
        "| pairs | store | extraction to disk | an epoch of training |\n|---|---|---|---|"
    )
    record("Memory", header, rows)


if __name__ == "__main__":
    torch.set_num_threads(1)  # several wait for each other where others work too
    if len(sys.argv) > 1:
        work(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    else:
        main()
