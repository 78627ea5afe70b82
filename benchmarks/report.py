"""What the benchmarks share: ratios measured fairly, and one report out of the tables of all."""

from __future__ import annotations

import json
import os
import statistics
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


def record(section: str, header: str, rows: list[str]) -> None:
    """Keep the running script's table and write the report anew from the tables of all scripts.

    Args:
        section: The title.
        header: Text before the table, a blank line, and the table's head: column names and rule.
        rows: The lines of the table.
    """
    script = Path(sys.argv[0]).name
    machine = f"{torch.get_num_threads()} of {os.cpu_count()} threads, torch {torch.__version__}, no accelerator"
    table = {"section": section, "command": f"python benchmarks/{script}", "machine": machine}
    TABLES.mkdir(exist_ok=True)
    text = json.dumps({**table, "header": header, "rows": rows}, ensure_ascii=False, indent=2)
    (TABLES / script).with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    RESULTS.write_text(render(), encoding="utf-8")
    print("\n".join([header, *rows]))


def render() -> str:
    """Return the report: a section a table, sorted by title."""
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in TABLES.glob("*.json")]
    parts = ["# Results\n\nBoth sides of a ratio are measured in one run, in turn; the median counts."]
    for table in sorted(tables, key=lambda table: table["section"]):
        command = f"`{table['command']}`, {table['machine']}."
        parts.append("\n".join([f"## {table['section']}\n\n{command} {table['header']}", *table["rows"]]))
    return "\n\n".join(parts) + "\n"
