"""The same pass on Ray: ranges of the pool are tasks, and a task whose worker is lost goes on from its last state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freezealign.curation.scoring import Scoring

RANGES = 64
"""Tasks a pass is divided into, however many machines there are: a pass can be taken up by another cluster."""
RETRIES = 5


def score_with_ray(scoring: Scoring, folder: Path, show_progress_bar: bool) -> list[Path]:
    """Score all rows on the cluster this process is connected to, or on a local one; return the states of the ranges.

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
        return _run(ray, scoring, folder.resolve(), show_progress_bar)
    finally:
        if started:
            ray.shutdown()


def _run(ray: Any, scoring: Scoring, folder: Path, show_progress_bar: bool) -> list[Path]:
    from tqdm.auto import tqdm

    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_gpus=gpus, max_retries=RETRIES)(_score)
    job, states = ray.put(scoring), []
    waiting = []
    for number, (start, stop) in enumerate(divide(len(scoring.pools[0]))):
        states.append(folder / f"state-{number:03d}.safetensors")
        waiting.append(task.remote(job, start, stop, states[-1]))
    with tqdm(desc="Scoring", unit="range", total=len(states), delay=1, disable=not show_progress_bar) as bar:
        while waiting:
            done, waiting = ray.wait(waiting)
            try:
                ray.get(done)
            except ray.exceptions.WorkerCrashedError as error:
                raise RuntimeError(
                    f"the worker of a range was lost {RETRIES + 1} times; run again to go on."
                ) from error
            bar.update(len(done))
    return states


def divide(rows: int, ranges: int = RANGES) -> list[tuple[int, int]]:
    """Return ranges of rows that are whole tiles, but for the last."""
    from freezealign.curation.scoring import TILE

    step = -(-rows // (ranges * TILE)) * TILE
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _score(scoring: Scoring, start: int, stop: int, state: Path) -> None:
    from freezealign.batch import default_device
    from freezealign.curation.scoring import score_range

    score_range(scoring, start, stop, state, default_device())
