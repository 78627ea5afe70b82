"""What the tiled losses are worth: memory and time against the plain formula, forward and backward.

python benchmarks/loss.py            # writes benchmarks/RESULTS.md and docs/images/loss_memory.png

Memory is that of a process of its own: how far its peak rises above what it held with the embeddings in place. Needs
Linux, whose peak can be reset: that of the imports would hide a small one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import torch
from report import ratio, record
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from freezealign import LogitScale
from freezealign.training.losses import ContrastiveLoss

PLOT = Path(__file__).parents[1] / "docs" / "images" / "loss_memory.png"
LIMIT = 2048  # MiB
FURTHER = 8  # times the largest batch of the plain loss is what the tiled one is given; that takes minutes


def plain(first: Tensor, second: Tensor, scale: LogitScale) -> Tensor:
    """InfoNCE in both directions with every logit at once."""
    logits, targets = scale(first @ second.T), torch.arange(len(first))
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


LOSSES = {"plain": plain, "tiled": ContrastiveLoss()}


def embeddings(size: int, dim: int) -> list[Tensor]:
    """Two batches of unit vectors that want gradients."""
    return [normalize(torch.randn(size, dim), dim=1).requires_grad_() for _ in range(2)]


def step(side: str, batches: list[Tensor], scale: LogitScale) -> None:
    """One forward and backward."""
    for batch in batches:
        batch.grad = None
    LOSSES[side](*batches, scale).backward()


def status(field: str) -> float:
    """Return a figure of Linux about this process, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measure(side: str, size: int, dim: int) -> None:
    """Print how many MiB one step adds; what torch sets up at its first is not counted."""
    scale = LogitScale()
    step(side, embeddings(64, dim), scale)
    batches = embeddings(size, dim)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = status("VmRSS")
    step(side, batches, scale)
    print(status("VmHWM") - before)


def extra_memory(side: str, size: int, dim: int) -> float:
    """Return the MiB that a step adds, measured in a new process."""
    command = [sys.executable, __file__, side, str(size), str(dim)]
    # Freed tensors go back to the system at once: reused ones would hide some of what a loss takes.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def largest_plain(measured: dict[int, float]) -> int:
    """Return the largest multiple of 512 within the limit, adding to what was measured at d = 512."""
    size = max(measured)
    size = int(size * (LIMIT / measured[size]) ** 0.5) // 512 * 512
    while measured.setdefault(size, extra_memory("plain", size, 512)) > LIMIT:
        size -= 512
    return size


def draw(curves: dict[str, dict[int, float]]) -> None:
    """Plot memory against batch size."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for side, points in curves.items():
        axes.plot(*zip(*sorted(points.items())), marker="o", label=side)
    axes.axhline(LIMIT, color="grey", linestyle=":", label="2 GiB")
    axes.set(xscale="log", yscale="log", xlabel="batch size B", ylabel="MiB above the embeddings", title="d = 512")
    axes.legend()
    figure.savefig(PLOT, dpi=150, bbox_inches="tight")


def speed(size: int, dim: int, repeats: int) -> str:
    """Compare one step of both."""
    batches, scale = embeddings(size, dim), LogitScale()
    gain = ratio(lambda: step("plain", batches, scale), lambda: step("tiled", batches, scale), repeats)
    return f"| time of a step, B = {size:,}, d = {dim} | {gain:.2f} times faster |"


def main() -> None:
    """Measure and write the table and the plot."""
    rows = [speed(256, 512, 200), speed(1024, 512, 20), speed(4096, 256, 3)]
    plain_memory, tiled_memory = (extra_memory(side, 4096, 256) for side in LOSSES)
    gain = plain_memory / tiled_memory
    rows.append(
        f"| memory, B = 4,096, d = 256 | {tiled_memory:.0f} MiB against {plain_memory:.0f} MiB, {gain:.0f} times less |"
    )
    curves = {side: {size: extra_memory(side, size, 512) for size in (1024, 2048, 4096, 8192)} for side in LOSSES}
    largest = largest_plain(curves["plain"])
    further = FURTHER * largest
    curves["tiled"][further] = extra_memory("tiled", further, 512)
    rows.append(
        f"| largest B within {LIMIT:,} MiB, d = 512 | plain {largest:,}; "
        f"tiled not reached: {further:,} takes {curves['tiled'][further]:,.0f} MiB |"
    )
    draw(curves)
    header = (
        "`ContrastiveLoss` against the plain formula in float32, forward and backward; memory is the peak above the "
        "embeddings, in a process of its own.\n\n"
        "![Memory against batch size](../docs/images/loss_memory.png)\n\n| what | tiled against plain |\n|---|---|"
    )
    record("Loss", header, rows)


if __name__ == "__main__":
    torch.set_num_threads(1)  # several wait for each other where others work too
    if len(sys.argv) > 1:
        measure(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        main()
