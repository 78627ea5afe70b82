"""What a command shows when something goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from freezealign.words import printable


@contextmanager
def plain_errors() -> Iterator[None]:
    """Show what went wrong as one message instead of a traceback, and exit with 1."""
    try:
        yield
    except BrokenPipeError:  # the reader has gone, as after `| head`: nobody is left to tell
        raise
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        lines = map(printable, str(error).split("\n"))  # a message may have several, and name what is in files
        typer.secho("freezealign: " + "\n".join(lines), fg="red", err=True)
        raise typer.Exit(1) from error
