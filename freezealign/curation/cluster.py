"""The exact pass on Ray: ranges of the pool are tasks, and a task whose worker is lost goes on from its last state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from freezealign.batch import default_device
from freezealign.curation.scoring import Scoring, score_range

RANGES = 64
"""Tasks a pass is divided into, however many machines there are: a pass can be taken up by another cluster."""
RETRIES = 5


def divide(scoring: Scoring) -> list[tuple[int, int]]:
    """Return ranges of rows, at most ``RANGES``, that are whole chunks, but for the last."""
    rows = len(scoring)
    step = -(-rows // (RANGES * scoring.chunk)) * scoring.chunk
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def score_with_ray(scoring: Scoring, ranges: list[tuple[int, int]], folder: Path, show_progress_bar: bool) -> None:
    """Score ranges on the cluster this process is connected to, or on a local one.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        RuntimeError: If the worker of a range was lost more than ``RETRIES`` times.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError("engine='ray' needs Ray; run: pip install 'freezealign[scale]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)
    try:
        _run(ray, scoring, ranges, folder.resolve(), show_progress_bar)
    finally:
        if started:
            ray.shutdown()


def _run(ray: Any, scoring: Scoring, ranges: list[tuple[int, int]], folder: Path, show_progress_bar: bool) -> None:
    from tqdm.auto import tqdm

    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task, job = ray.remote(num_gpus=gpus, max_retries=RETRIES)(_score), ray.put(scoring)
    waiting = [task.remote(job, start, stop, folder) for start, stop in ranges]
    with tqdm(desc="Scoring", unit="range", total=len(ranges), delay=1, disable=not show_progress_bar) as bar:
        while waiting:
            done, waiting = ray.wait(waiting)
            try:
                ray.get(done)
            except ray.exceptions.WorkerCrashedError as error:
                raise RuntimeError(
                    f"the worker of a range was lost {RETRIES + 1} times; run again to go on."
                ) from error
            bar.update(len(done))


def _score(scoring: Scoring, start: int, stop: int, folder: Path) -> None:
    score_range(scoring, start, stop, folder, default_device())
