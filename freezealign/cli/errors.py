"""What a command shows when something goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def plain_errors() -> Iterator[None]:
    """Show what went wrong as one message instead of a traceback, and exit with 1."""
    try:
        yield
    except BrokenPipeError:  # the reader has gone, as after `| head`: nobody is left to tell
        raise
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        typer.secho(f"freezealign: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
