"""Alignment measures against the formulas over all pairs of items: time, memory, and whether the values agree.

python benchmarks/alignment.py

Each figure comes from a process of its own; time is the median of three, taken in turn. Memory is the peak above that
of holding the data, measured apart. Needs Linux.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import measure, print_cost, record

from freezealign.alignment import LinearCKA, MutualKNN, rank_encoders
from freezealign.alignment.vectors import StoreVectors, Vectors
from freezealign.features import FeatureStore, Origin
from freezealign.features.columns import NpyFile

WIDTHS = (768, 1024)
K = 10
GRID, GRID_ITEMS, GRID_WIDTH = 6, 2000, 768


def make_spaces(n: int, seed: int = 0) -> list[np.ndarray]:
    """Return two float32 spaces of n items that share 32 latent dimensions."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, 32), np.float32)
    return [
        latent @ rng.standard_normal((32, d), np.float32) + 4 * rng.standard_normal((n, d), np.float32) for d in WIDTHS
    ]


def direct_cka(x: np.ndarray, y: np.ndarray, dtype: torch.dtype) -> float:
    """Return unbiased CKA from n x n kernel matrices (Song et al. 2012)."""
    spaces = [torch.from_numpy(space).to(dtype) for space in (x, y)]
    first, second = ((space @ space.T).fill_diagonal_(0) for space in spaces)
    n = len(first)

    def hsic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        rows_a, rows_b = a.sum(1), b.sum(1)
        trace = (a * b).sum() + rows_a.sum() * rows_b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows_a @ rows_b
        return trace / (n * (n - 3))

    return float(hsic(first, second) / (hsic(first, first) * hsic(second, second)).sqrt())


def direct_mutual_knn(x: np.ndarray, y: np.ndarray, sort: bool) -> float:
    """Return mutual kNN from n x n similarities and masks; ``sort`` orders all neighbours, as platonic-rep does."""
    masks = []
    for space in (x, y):
        unit = torch.nn.functional.normalize(torch.from_numpy(space))
        similarity = (unit @ unit.T).fill_diagonal_(-1e8)
        near = similarity.argsort(dim=1, descending=True)[:, :K] if sort else similarity.topk(K).indices
        masks.append(torch.zeros_like(similarity).scatter_(1, near, 1))
    return float((masks[0] * masks[1]).sum() / masks[0].sum())


def random_store(n: int) -> list[StoreVectors]:
    """Return float16 spaces of n random items on disk, as feature stores hold them."""
    folder, rng = Path(tempfile.mkdtemp(dir=os.environ["BENCHMARK_FOLDER"])), np.random.default_rng(0)
    spaces = []
    for modality, width in zip(("image", "text"), WIDTHS):
        path = folder / f"{width}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n, width))
        for start in range(0, n, 10_000):
            array[start : start + 10_000] = rng.standard_normal((len(array[start : start + 10_000]), width), np.float32)
        del array
        store = FeatureStore.from_shards(
            {modality: Origin(modality, "random", {}, "mean")}, [columns(modality, NpyFile(path))]
        )
        spaces.append(StoreVectors(store, modality, np.arange(n)))
    return spaces


def streamed_cka(*spaces: Any) -> float:
    """Return unbiased CKA of arrays, or of the rows of stores."""
    x, y = (space if isinstance(space, Vectors) else Vectors(space) for space in spaces)
    return LinearCKA().measure_pairs([x], [y], [(0, 0)])[0]


def columns(modality: str, vectors: Any) -> dict[str, Any]:
    """Return the columns of a store of vectors (n, d), one an item."""
    n = len(vectors)
    letters = np.frombuffer(b"".join(f"{number:07}".encode() for number in range(n)), np.uint8)
    names = {"items/ids.utf8": letters, "items/ids.lengths": np.full(n, 7, np.int32)}
    return {f"{modality}/sentence_embedding": vectors, f"items/{modality}": np.ones(n, np.int32), **names}


def make_grid() -> tuple[dict[str, FeatureStore], dict[str, FeatureStore]]:
    """Return six image and six text feature stores of the same random items."""
    rng = np.random.default_rng(0)
    sides: dict[str, dict[str, FeatureStore]] = {"image": {}, "text": {}}
    latent = rng.standard_normal((GRID_ITEMS, 32), np.float32)
    for modality, stores in sides.items():
        for number in range(GRID):
            vectors = latent @ rng.standard_normal((32, GRID_WIDTH), np.float32)
            vectors += 4 * rng.standard_normal((GRID_ITEMS, GRID_WIDTH), np.float32)
            origin = Origin(f"{modality} {number}", str(number), {}, "mean")
            stores[origin.name] = FeatureStore.from_shards({modality: origin}, [columns(modality, vectors)])
    return sides["image"], sides["text"]


def one_by_one(vision: dict[str, FeatureStore], text: dict[str, FeatureStore]) -> float:
    """Rank every pair on its own and return the best CKA."""
    rankings = [
        rank_encoders({a: x}, {b: y}, show_progress_bar=False) for a, x in vision.items() for b, y in text.items()
    ]
    return max(ranking.best.scores["cka"].value for ranking in rankings)


def all_together(vision: dict[str, FeatureStore], text: dict[str, FeatureStore]) -> float:
    """Rank all pairs in one call and return the best CKA."""
    return rank_encoders(vision, text, show_progress_bar=False).best.scores["cka"].value


TASKS: dict[str, tuple[Callable[[int], Any], Callable[..., float]]] = {
    "cka": (make_spaces, LinearCKA()),
    "cka n x n float64": (make_spaces, lambda x, y: direct_cka(x, y, torch.float64)),
    "cka n x n float32": (make_spaces, lambda x, y: direct_cka(x, y, torch.float32)),
    "cka from disk": (random_store, streamed_cka),
    "mutual_knn": (make_spaces, MutualKNN(K)),
    "mutual_knn sorted": (make_spaces, lambda x, y: direct_mutual_knn(x, y, sort=True)),
    "mutual_knn topk": (make_spaces, lambda x, y: direct_mutual_knn(x, y, sort=False)),
    "grid": (lambda n: make_grid(), all_together),
    "grid one by one": (lambda n: make_grid(), one_by_one),
}


def work(task: str, n: int) -> None:
    """Do one task and print its seconds, its peak in MiB above the data, and its value."""
    make, function = TASKS[task]
    if not task.startswith("grid"):
        function(*make_spaces(1100))  # what is loaded on first use counts for neither side
    data = make(n)
    print_cost(lambda: function(*data))


def row(what: str, against: str, ours: dict[str, float], theirs: dict[str, float]) -> str:
    """Return a line of the table."""
    faster, difference = theirs["seconds"] / ours["seconds"], abs(ours["value"] - theirs["value"])
    memories = f"{ours['peak']:,.0f} / {theirs['peak']:,.0f} MiB"
    return f"| {what} | {against} | {faster:.2f}x | {memories} | {difference:.0e} |"


def main() -> None:
    """Measure and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BENCHMARK_FOLDER"] = folder  # for the processes that write their data to disk
        record("Alignment measures", *make_table())


def make_table() -> tuple[str, list[str]]:
    """Return the header and the lines of the table."""
    rows = []
    ours, double, single = measure(("cka", 8000), ("cka n x n float64", 8000), ("cka n x n float32", 8000))
    rows.append(row("unbiased CKA, n = 8,000", "n × n, float64", ours, double))
    rows.append(row("unbiased CKA, n = 8,000", "n × n, float32", ours, single))
    large, small = measure(("cka from disk", 1_000_000), ("cka from disk", 100_000), repeats=1)
    speed, memories = small["seconds"] / large["seconds"] * 10, f"{large['peak']:,.0f} / {small['peak']:,.0f} MiB"
    rows.append(
        f"| unbiased CKA, n = 1,000,000, a float16 store | itself at 100,000, an item | {speed:.2f}x | {memories} | |"
    )
    ours, ordered, topk = measure(("mutual_knn", 8000), ("mutual_knn sorted", 8000), ("mutual_knn topk", 8000))
    rows.append(row("mutual kNN, n = 8,000", "n × n, all neighbours sorted", ours, ordered))
    rows.append(row("mutual kNN, n = 8,000", "n × n, top-k", ours, topk))
    [many] = measure(("mutual_knn", 40_000), repeats=1)
    rows.append(f"| mutual kNN, n = 40,000 | | | {many['peak']:,.0f} MiB | |")
    together, apart = measure(("grid", GRID_ITEMS), ("grid one by one", GRID_ITEMS), repeats=2)
    what = f"`rank_encoders`, {GRID} × {GRID}, n = {GRID_ITEMS:,}, d = {GRID_WIDTH}"
    rows.append(row(what, "each pair alone", together, apart))
    header = (
        f"Spaces of {WIDTHS[0]} and {WIDTHS[1]} dimensions. Memory: peak above that of holding the data, ours / theirs."
        "\n\n"
        "| what | against | faster | memory | difference |\n|---|---|---|---|---|"
    )
    return header, rows


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(sys.argv[1], int(sys.argv[2]))
    else:
        main()
