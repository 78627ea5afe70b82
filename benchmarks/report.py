"""What the benchmarks share: ratios measured fairly, and one report out of the tables of all."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
TABLES = HERE / "results"
REPEATS = 3
# Freed tensors go back to the system at once: reused ones would hide some of what is taken. That takes time.
HIDE_NOTHING = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def ratio(slow: Callable[[], Any], fast: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Return how many times longer ``slow`` takes, each called once to warm up and then in turn."""
    times: dict[Callable[[], Any], list[float]] = {slow: [], fast: []}
    for repeat in range(repeats + 1):
        for function, seconds in times.items():
            start = time.perf_counter()
            function()
            if repeat:
                seconds.append(time.perf_counter() - start)
    return statistics.median(times[slow]) / statistics.median(times[fast])


def print_cost(function: Callable[[], Any]) -> None:
    """Call a function and print its seconds, its peak in MiB above what the process holds now, and its value."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before, start = memory("VmRSS"), time.perf_counter()
    value = function()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": memory("VmHWM") - before, "value": value}))


def memory(key: str) -> float:
    """Return this process's memory in MiB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def run(task: str, n: int, **environment: str) -> dict[str, Any]:
    """Run the script again with a task and a size, and return what it gave to :func:`print_cost`."""
    command = [sys.executable, sys.argv[0], task, str(n)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    found: dict[str, Any] = json.loads(output.stdout.splitlines()[-1])
    return found


def measure(*tasks: tuple[str, int], repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Return for each task its median seconds, tasks taken in turn, its peak, and its value."""
    runs = [[run(*task) for task in tasks] for _ in range(repeats)]
    peaks = [run(*task, **HIDE_NOTHING)["peak"] for task in tasks]
    seconds = [statistics.median(found["seconds"] for found in column) for column in zip(*runs)]
    return [{**found, "seconds": time, "peak": peak} for found, time, peak in zip(runs[0], seconds, peaks)]


def record(section: str, header: str, rows: list[str] | dict[str, list[str]]) -> None:
    """Keep the running script's table and write the report anew from the tables of all scripts.

    Args:
        section: The title.
        header: Text before the table, a blank line, and the table's head: column names and rule.
        rows: The lines of the table; or those of several with this head, each under its title.
    """
    script = Path(sys.argv[0]).name
    machine = f"{torch.get_num_threads()} of {os.cpu_count()} threads, torch {torch.__version__}, no accelerator"
    table = {"section": section, "command": f"python benchmarks/{script}", "machine": machine}
    TABLES.mkdir(exist_ok=True)
    text = json.dumps({**table, "header": header, "rows": rows}, ensure_ascii=False, indent=2)
    (TABLES / script).with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    RESULTS.write_text(render(), encoding="utf-8")
    print(body(header, rows))


def body(header: str, rows: list[str] | dict[str, list[str]]) -> str:
    """Return the text and the table, or one table a title, each with the same head; arguments as in :func:`record`."""
    text, head = header.rsplit("\n\n", 1)
    if isinstance(rows, list):
        return "\n".join([f"{text}\n\n{head}", *rows])
    return "\n\n".join([text, *("\n".join([f"### {title}\n\n{head}", *lines]) for title, lines in rows.items())])


def render() -> str:
    """Return the report: a section a table, sorted by title."""
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in TABLES.glob("*.json")]
    parts = ["# Results\n\nBoth sides of a ratio are measured in one run, in turn; the median counts."]
    for table in sorted(tables, key=lambda table: table["section"]):
        command = f"`{table['command']}`, {table['machine']}."
        parts.append(f"## {table['section']}\n\n{command} {body(table['header'], table['rows'])}")
    return "\n\n".join(parts) + "\n"
