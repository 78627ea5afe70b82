"""Curation: one pass over a pool against the bare matrix products and against sorting everything.

python benchmarks/curation.py

The pools are random, in float16 files of a million rows in a temporary folder; the largest takes 15 GB of disk. Each
side runs in a process of its own; memory is its peak above what it holds once everything is imported. Needs Linux.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import HIDE_NOTHING, print_cost, record, run
from torch.nn.functional import normalize

from freezealign.curation import Prototypes, Scoring, open_pool, score_pool
from freezealign.curation.top_k import rows_of

WIDTH, CONCEPTS, K = 768, 3000, 2000
FILE_ROWS = 1_000_000
SORTED_AT_ONCE = 100
FOLDER = "CURATION_BENCHMARK_FOLDER"


def write_pool(folder: Path, rows: int) -> None:
    """Write files of random rows; each is the first with some coordinates negated, which makes its rows other ones."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(FILE_ROWS, WIDTH, generator=generator).half()
    for number in range(rows // FILE_ROWS):
        signs = torch.randint(0, 2, (WIDTH,), generator=generator) * 2 - 1 if number else torch.ones(WIDTH)
        np.save(folder / f"img_emb_{number}.npy", (first * signs.half()).numpy())


def make_prototypes(concepts: int) -> Prototypes:
    """Return random prototypes."""
    vectors = torch.randn(concepts, WIDTH, generator=torch.Generator().manual_seed(1))
    return Prototypes.from_vectors(vectors, [str(number) for number in range(concepts)])


def one_pass(folder: Path, concepts: int = CONCEPTS) -> Any:
    """Return a function that scores the pool and returns the rows of the first concepts."""
    scoring = Scoring([open_pool(folder)], [make_prototypes(concepts)], K)

    def score() -> list[list[int]]:
        with tempfile.TemporaryDirectory() as scores:
            keys = score_pool(scoring, Path(scores), show_progress_bar=False).keys
        return [sorted(rows) for rows in rows_of(keys[:3]).tolist()]

    return score


def products(rows: int) -> Any:
    """Return a function that computes nothing but the matrix products, of one tile in memory again and again."""
    prototypes = make_prototypes(CONCEPTS).vectors
    tile, scores = torch.randn(Scoring.chunk, WIDTH), torch.empty(CONCEPTS, Scoring.chunk)

    def multiply() -> None:
        for _ in range(rows // Scoring.chunk):
            torch.mm(prototypes, tile.T, out=scores)

    return multiply


def sort_everything(folder: Path) -> Any:
    """Return a function that sorts the scores of all rows, of some concepts at a time, as all do not fit."""
    pool, prototypes = open_pool(folder), make_prototypes(CONCEPTS).vectors
    vectors = normalize(torch.from_numpy(pool.vectors.take(np.arange(len(pool)))).float())

    def sort() -> list[list[int]]:
        parts = prototypes.split(SORTED_AT_ONCE)
        best = [np.argsort(-(some @ vectors.T).numpy(), axis=1)[:, :K].copy() for some in parts]
        return [sorted(rows) for rows in np.concatenate(best)[:3].tolist()]

    return sort


def work(task: str, rows: int) -> None:
    """Do one side and print what it cost."""
    folder = Path(os.environ[FOLDER])
    with tempfile.TemporaryDirectory() as small:
        np.save(Path(small) / "a.npy", np.ones((8, WIDTH), np.float16))
        one_pass(Path(small), 2)()  # what is imported on first use counts for neither side
    print_cost({"ours": lambda: one_pass(folder), "products": lambda: products(rows),
                "sort": lambda: sort_everything(folder)}[task]())  # fmt: skip


def compare(rows: int, repeats: int) -> tuple[dict[str, Any], float]:
    """Return what our pass over so many rows cost, and the share of its time that the bare products take."""
    pairs = [(run("products", rows), run("ours", rows)) for _ in range(repeats)]
    shares = sorted(bare["seconds"] / ours["seconds"] for bare, ours in pairs)
    return pairs[0][1], shares[len(shares) // 2]


def main() -> None:
    """Measure and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        write_pool(Path(folder), FILE_ROWS)
        million, share = compare(FILE_ROWS, 3)
        million["peak"] = run("ours", FILE_ROWS, **HIDE_NOTHING)["peak"]
        everything = run("sort", FILE_ROWS)
        different = sum(len(set(ours) - set(all_)) for ours, all_ in zip(million["value"], everything["value"]))
        assert different <= 3 * K // 1000, different
        faster = everything["seconds"] / million["seconds"]
        write_pool(Path(folder), 10 * FILE_ROWS)
        large, large_share = compare(10 * FILE_ROWS, 1)
    header = (
        f"Random rows, {WIDTH} wide in float16 files, against {CONCEPTS:,} prototypes, K = {K:,}. Share: the time of "
        "the bare float32 products, of one tile in memory, over that of the whole pass. Memory: the peak above what "
        f"the process holds before. Sorting everything holds the pool in memory as float32, {SORTED_AT_ONCE} concepts' "
        "scores at a time, and its reading is not counted; of the best rows, all but "
        f"{different} of {3 * K:,} were found equal, the rest by rounding.\n\n"
        "| what | against | ratio | memory |\n|---|---|---|---|"
    )
    rate = 10 * FILE_ROWS / large["seconds"]
    record(
        "Curation",
        header,
        [
            f"| one pass, 1M rows | the bare products | share {share:.0%} | {million['peak']:,.0f} MiB |",
            f"| one pass, 1M rows | sorting everything | {faster:.1f}x faster | {everything['peak']:,.0f} MiB |",
            f"| one pass, 10M rows ({large['seconds']:.0f} s, {rate:,.0f} rows a second) | the bare products | "
            f"share {large_share:.0%} | {large['peak']:,.0f} MiB |",
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(sys.argv[1], int(sys.argv[2]))
    else:
        main()
