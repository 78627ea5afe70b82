"""The command line: a thin face over public functions, a file a command. Nothing heavy is imported before one runs."""

from __future__ import annotations

from collections.abc import Callable

import typer

from freezealign.cli.curate import curate
from freezealign.cli.demo import demo
from freezealign.cli.encoders import encoders
from freezealign.cli.errors import plain_errors
from freezealign.cli.evaluate import evaluate
from freezealign.cli.extract import extract
from freezealign.cli.rank import rank
from freezealign.cli.toy import toy
from freezealign.cli.train import train

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

for name, command in COMMANDS.items():
    app.command(name)(plain_errors()(command))
