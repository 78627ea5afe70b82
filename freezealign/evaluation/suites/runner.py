"""Run a suite on a model, task by task; what is finished is not run again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from freezealign.evaluation.suites.report import RESULT, left_out_line, read_record, write_report
from freezealign.evaluation.suites.suite import NAME, Suite, Task
from freezealign.evaluation.suites.tasks import make_evaluator
from freezealign.files import exclusive, is_leftover, write_json_atomically
from freezealign.forms import differences
from freezealign.inputs import InputError
from freezealign.space import Space


def run_suite(
    model: Any,
    suite: Suite | str | PathLike[str],
    output: str | PathLike[str],
    *,
    name: str = "model",
    identity: str = "",
    root: str | PathLike[str] = ".",
    tasks: Sequence[str] | None = None,
    batch_size: int = 32,
    show_progress_bar: bool = True,
    announce: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Evaluate a model on every task of a suite and write the report of all models evaluated there.

    A task is finished once ``OUTPUT/NAME/TASK/result.json`` is there; it is run again only for another task, model or
    ``identity``. A task that cannot be run, because its data is not there or does not suit the model, is noted with its
    reason, in the report too, and the next one is run. What of its data cannot be read is left out, counted and listed;
    ``strict: true`` in a task's data refuses such data instead.

    Args:
        model: A :class:`~freezealign.FreezeAlign`, or anything with ``encode_image`` and ``encode_text``.
        suite: A :class:`Suite`, the path of its YAML file, or the name of one that comes with the library.
        output: Folder for results, pictures, ``report.md`` and ``report.html``.
        name: The model's folder and its name in the report.
        identity: What tells this model from another of the same name, such as a hash of its weights; a FreezeAlign is
            told by its own digest.
        root: What relative paths of data start from.
        tasks: Only these, by name.
        batch_size: Items a forward pass.
        show_progress_bar: Show progress of what takes longer than a second.
        announce: Called with a line before and after each task.

    Returns:
        For each task what its ``result.json`` holds: ``results`` of the evaluator and ``skipped``, or ``error``.

    Raises:
        RuntimeError: If another process is evaluating a model of this name there.
        ValueError: If the suite has no such task, or the model's name is no name of a folder.
    """
    suite = suite if isinstance(suite, Suite) else Suite.load(suite)
    if not NAME.fullmatch(name):
        raise ValueError(f"a model's name is of letters, digits, '.', '_' and '-'; got {name!r}.")
    known = [task.name for task in suite.tasks]
    if unknown := sorted(set(tasks or ()) - set(known)):
        raise ValueError(f"the suite has no task {unknown}; it has {known}.")
    chosen = [task for task in suite.tasks if not tasks or task.name in tasks]
    folder, found = Path(output), {}
    key = {"model_identity": model.weights_digest() if isinstance(model, Space) else identity}
    with exclusive(folder / name):
        for number, task in enumerate(chosen, start=1):
            place = folder / name / task.name
            key["task_identity"] = task.identity
            record = read_record(place / RESULT) if (place / RESULT).is_file() else {}
            finished = "error" not in record and not differences(record, key)
            announce(f"[{number}/{len(chosen)}] {task.name}: {'finished earlier' if finished else 'running'}")
            if not finished:
                # what another task or model left, so that no report mixes its pictures with new results
                for path in (place / RESULT, *place.glob("*.png"), *filter(is_leftover, place.glob(".*"))):
                    path.unlink(missing_ok=True)
                record = {**key, **_run(model, task, place, Path(root), batch_size, show_progress_bar)}
                write_json_atomically(place / RESULT, record)  # a half would count as finished
            if "error" in record:
                announce(f"    not run: {record['error']}")
            elif line := left_out_line(record):
                announce(f"    {line}")
            found[task.name] = record
    write_report(suite, folder)
    return found


def _run(model: Any, task: Task, folder: Path, root: Path, batch_size: int, show_progress_bar: bool) -> dict[str, Any]:
    """Return what a task found and how to lay it out, or the reason why it could not be run."""
    record: dict[str, Any] = {"task": task.name, "evaluator": task.evaluator}
    start = time.perf_counter()
    try:
        evaluator, skipped = make_evaluator(task, root, batch_size, show_progress_bar)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            results = evaluator.evaluate(model, folder)
        except (InputError, OSError):
            evaluator, unread = make_evaluator(task, root, batch_size, show_progress_bar, readable=True)
            if len(unread) == len(skipped):
                raise
            results, skipped = evaluator.evaluate(model, folder), unread
    except Exception as error:  # whatever a task's data or a model trips over is that task's failure
        return {**record, "error": f"{type(error).__name__}: {error}"}
    layout = {"languages": evaluator.languages, "columns": evaluator.columns}
    left = {"skipped": [vars(entry) for entry in skipped]} if skipped else {}
    return {**record, **layout, **left, "seconds": round(time.perf_counter() - start, 1), "results": results}
