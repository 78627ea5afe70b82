"""Engines: one pass over a pool on this machine, on a cluster, or approximately; its result is kept in a folder."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch

from freezealign.curation.approximate import search_with_faiss
from freezealign.curation.scoring import Scores, Scoring, merge_ranges, score_range
from freezealign.files import claim, exclusive

Engine = Literal["local", "ray", "faiss"]
STATES = ("*state-*", "*index.faiss*")
"""What a pass keeps while it is under way, and what a killed writer of it leaves."""
RANGES = 64
"""Tasks a pass is divided into on Ray, however many machines there are: another cluster can take it up."""
RETRIES = 5


def score_pool(
    scoring: Scoring,
    folder: Path,
    *,
    engine: Engine = "local",
    device: str | torch.device = "cpu",
    seed: int = 0,
    show_progress_bar: bool = True,
) -> Scores:
    """Score all rows and keep ``folder/scores.safetensors``; run again after a kill, it goes on.

    Args:
        scoring: What to compare.
        folder: For the result, and the state of a pass that is under way; new, or of the same pass.
        engine: ``ray`` divides the pool among the machines of a cluster, which all see ``folder`` and the pool;
            ``faiss`` searches approximately.
        device: Where the matrix products run, with engine ``local``.
        seed: Of the approximate index.
        show_progress_bar: Show progress if it takes longer than a second.

    Raises:
        FileExistsError: If the folder holds something else.
        ModuleNotFoundError: If the engine is not installed.
        RuntimeError: If another process is scoring into the folder, or workers are lost again and again.
        ValueError: If the folder holds scores of something else, or a damaged or short file.
    """
    device, result = _checked(engine, device), folder / "scores.safetensors"
    request = {**scoring.request(), "approximate": {"seed": seed} if engine == "faiss" else None}
    # what is finished is only read, by as many curations at once as there are
    with nullcontext() if result.is_file() else exclusive(folder):
        claim(folder / "request.json", request, "scores")
        if not result.is_file():
            if engine == "faiss":
                scores = search_with_faiss(scoring, folder, seed, show_progress_bar)
            elif engine == "ray":
                ranges = divide(scoring)
                score_with_ray(scoring, ranges, folder.resolve(), show_progress_bar)
                scores = merge_ranges(scoring, ranges, folder)
            else:
                score_range(scoring, 0, len(scoring), folder, device, show_progress_bar)
                scores = merge_ranges(scoring, [(0, len(scoring))], folder)
            scores.write(result)
        for pattern in STATES:
            for state in folder.glob(pattern):
                state.unlink(missing_ok=True)
    scores = Scores.read(result)
    scores = replace(scores, keys=scores.keys[:, : scoring.kept])
    if scores.rows != len(scoring) or scores.keys.shape != (len(scoring.concepts), scoring.kept):
        raise ValueError(f"{result} is short: {scores.rows:,} of {len(scoring):,} rows; delete it and run again.")
    return scores


def _checked(engine: Engine, device: str | torch.device) -> torch.device:
    if engine not in get_args(Engine):
        raise ValueError(f"unknown engine {engine!r}; choose one of {get_args(Engine)}.")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"there is no device {device!r}: {error}") from None
    if engine != "local" and device.type != "cpu":
        raise ValueError(f"a device goes with engine 'local'; {engine} chooses its own.")
    return device


def divide(scoring: Scoring) -> list[tuple[int, int]]:
    """Return ranges of rows, at most ``RANGES``, that are whole chunks, but for the last."""
    rows = len(scoring)
    step = -(-rows // (RANGES * scoring.chunk)) * scoring.chunk
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def score_with_ray(scoring: Scoring, ranges: list[tuple[int, int]], folder: Path, show_progress_bar: bool) -> None:
    """Score ranges on the cluster this process is connected to, or on a local one.

    Each is a task; one whose worker is lost goes on from its last state, ``RETRIES`` times.
    """
    from tqdm.auto import tqdm

    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError("engine='ray' needs Ray; run: pip install 'freezealign[scale]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        task, job = ray.remote(num_gpus=gpus, max_retries=RETRIES)(score_range), ray.put(scoring)
        waiting = [task.remote(job, start, stop, folder) for start, stop in ranges]
        with tqdm(desc="Scoring", unit="range", total=len(ranges), delay=1, disable=not show_progress_bar) as bar:
            while waiting:
                done, waiting = ray.wait(waiting)
                ray.get(done)
                bar.update(len(done))
    except ray.exceptions.WorkerCrashedError as error:
        raise RuntimeError(f"the worker of a range was lost {RETRIES + 1} times; run again to go on.") from error
    finally:
        if started:
            ray.shutdown()
