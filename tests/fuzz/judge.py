"""What may come of a damaged input: the right result, or one of the library's own errors; in bounded time and memory.

``FREEZEALIGN_FUZZ=2000`` makes 2,000 inputs a driver and goes on after a fault, so that all kinds of faults are found
and counted. Without it a driver makes a few, always the same ones, and hypothesis shrinks what fails.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings

import freezealign
from freezealign.inputs import InputError

EXAMPLES = int(os.environ.get("FREEZEALIGN_FUZZ", "0"))
SECONDS, BYTES = 10, 3 * 2**30
"""What one input may take: a picture at the limit of 100 million pixels takes the most."""
OWN = Path(freezealign.__file__).parent
CLEAR = (InputError, ValueError, OSError, FileNotFoundError, FileExistsError, ConnectionError, FloatingPointError)
COUNTS: dict[str, Counter] = defaultdict(Counter)
FAULTS: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
"""By driver and kind of fault the smallest input, and what happened."""


class Wrong(AssertionError):
    """A result that is neither that of the undamaged input nor a part of it, and nothing said so."""


class Hang(BaseException):
    """It took too long; no ``except Exception`` on the way may hide it."""


def driver(quick: int) -> Callable[[Any], Any]:
    """Return the settings of a driver: so many inputs in the quick suite, or as many as the long run asks for."""
    phases = [Phase.explicit, Phase.generate] if EXAMPLES else list(Phase)
    return settings(
        max_examples=EXAMPLES or quick,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )


def judge(name: str, shown: Any, run: Callable[[Path], Any], *names: str) -> None:
    """Call ``run`` with a new folder, and decide what came of it.

    Args:
        name: The driver.
        shown: The input, for whoever has to mend what it breaks.
        run: Reads the input and compares the result; raises :class:`Wrong` if it is a wrong one.
        names: A clear error has the folder in it, or one of these; an ``InputError`` need not, it is one item's.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        try:
            with bounded():
                run(Path(folder))
            kind, fault = "right", None
        except Exception as error:
            kind, fault = kind_of(error, (folder, *names)), error
        except Hang as error:
            kind, fault = "crash", error
    COUNTS[name][kind] += 1
    if fault is None or kind == "clear":
        return
    if not EXAMPLES:
        raise AssertionError(f"{kind}: {told(fault)}") from fault
    where = str(fault).split(" is ")[0][:60] if kind == "silent" else last_own_frame(fault)
    signature, inputs = f"{type(fault).__name__} {where}", repr(shown)
    if signature not in FAULTS[name] or len(inputs) < len(FAULTS[name][signature][0]):
        FAULTS[name][signature] = (inputs, told(fault))


def kind_of(error: Exception, names: tuple[str, ...]) -> str:
    """Return ``clear`` for an error of our own that names what is wrong, ``silent`` or ``crash``."""
    if isinstance(error, Wrong):
        return "silent"
    raised = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    named = isinstance(error, InputError) or any(name in str(error) for name in names)
    ours = type(error) in CLEAR and raised.is_relative_to(OWN)
    systems = isinstance(error, OSError) and error.filename is not None  # "Is a directory: '…'" says it all
    return "clear" if named and (ours or systems) else "crash"


def told(error: BaseException) -> str:
    """Return an error with where it was raised, for the report."""
    return f"{type(error).__name__}: {str(error)[:300]} [{last_own_frame(error)}]"


def last_own_frame(error: BaseException) -> str:
    """Return the last place in the library that an error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(OWN)]
    return f"{Path(frames[-1].filename).relative_to(OWN.parent)}:{frames[-1].name}" if frames else "outside"


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Run a block in ``SECONDS`` and with ``BYTES`` more than now; warnings are not shown."""

    def stop(*_: Any) -> None:
        raise Hang(f"it takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, hard))
    try:
        logging.disable()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def require(condition: Any, what: str) -> None:
    """Raise :class:`Wrong` unless the condition holds."""
    if not condition:
        raise Wrong(what)


def require_equal(found: Any, expected: Any, what: str) -> None:
    """Raise :class:`Wrong` unless two values, arrays or dictionaries of arrays are equal."""
    if isinstance(expected, dict):
        require_equal(sorted(found), sorted(expected), f"{what}: other keys")
        for key in expected:
            require_equal(found[key], expected[key], f"{what}: {key}")
        return
    same = np.array_equal(found, expected) if isinstance(expected, np.ndarray) else found == expected
    require(same, f"{what} is {str(found)[:200]}, not {str(expected)[:200]}")
