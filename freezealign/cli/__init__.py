"""The command line: a thin face over public functions, a file a command. Nothing heavy is imported before one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from freezealign.cli.curate import curate
from freezealign.cli.demo import demo
from freezealign.cli.encoders import encoders
from freezealign.cli.evaluate import evaluate
from freezealign.cli.extract import extract
from freezealign.cli.rank import rank
from freezealign.cli.toy import toy
from freezealign.cli.train import train
from freezealign.words import printable

app = typer.Typer(
    name="freezealign",
    help="One embedding space for images and texts in any language, out of encoders that stay frozen.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "extract": extract,
    "train": train,
    "rank": rank,
    "curate": curate,
    "eval": evaluate,
    "toy": toy,
    "encoders": encoders,
}
"""What ``--help`` lists, in this order."""


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


for name, command in COMMANDS.items():
    app.command(name)(plain_errors()(command))
