"""The table at the end of a long run, and its faults."""

from __future__ import annotations

import judge
import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Fail a driver that went on after a fault, once it is through."""
    already = {name: set(found) for name, found in judge.FAULTS.items()}
    outcome = yield
    new = {name: set(found) - already.get(name, set()) for name, found in judge.FAULTS.items()}
    if outcome.excinfo is None and any(new.values()):
        told = [
            f"{judge.FAULTS[n][kind][1]}\n  input: {judge.FAULTS[n][kind][0][:2000]}" for n in new for kind in new[n]
        ]
        outcome.force_exception(AssertionError("\n".join(told)))


def pytest_terminal_summary(terminalreporter):
    """Print what came of every input, by driver."""
    if not judge.EXAMPLES or not judge.COUNTS:
        return
    write, kinds = terminalreporter.write_line, ("right", "clear", "crash", "silent")
    rows = {name: [sum(count.values()), *(count[kind] for kind in kinds)] for name, count in judge.COUNTS.items()}
    rows["all"] = [sum(column) for column in zip(*rows.values())]
    write("")
    write("| driver | inputs tried | right results | clear errors | crashes | silent errors |")
    write("|---|---|---|---|---|---|")
    for name, numbers in rows.items():
        write(f"| {name} | {' | '.join(f'{number:,}' for number in numbers)} |")
