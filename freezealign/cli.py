"""The command line: a thin face over public functions. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="freezealign",
    help="One embedding space for images and texts in any language, out of encoders that stay frozen.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Data(str, Enum):
    """Real sample data."""

    openmoji = "openmoji"
    tuxpaint = "tuxpaint"


class Recipe(str, Enum):
    """The blocks behind the frozen encoders."""

    auto = "auto"
    token = "token"
    pooled = "pooled"
    linear = "linear"
    glu = "glu"
    kernel = "kernel"


class Init(str, Enum):
    """Where training starts."""

    closed_form = "closed-form"
    random = "random"


@app.callback()
def main() -> None:
    """Group the commands, so that a single one still needs its name."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the model, the report and the picture.")] = Path(
        "demo-output"
    ),
    data: Annotated[
        Data, typer.Option(help="OpenMoji comes with the packages; Tux Paint needs --stamps.")
    ] = Data.openmoji,
    stamps: Annotated[
        Path | None, typer.Option(help="Folder of the Tux Paint stamps; 'make stamps' fetches it.")
    ] = None,
    fold: Annotated[int, typer.Option(min=0, max=4, help="Which fifth of Tux Paint is held out.")] = 0,
    image_encoder: Annotated[
        str, typer.Option(help="A name from 'freezealign encoders', a hub id or a folder.")
    ] = "efficientnet-lite2",
    text_encoder: Annotated[str, typer.Option(help="Likewise.")] = "use-multilingual",
    recipe: Annotated[
        Recipe, typer.Option(help="The trained blocks; auto lets the number of pairs decide, token is the paper's.")
    ] = Recipe.auto,
    init: Annotated[Init | None, typer.Option(help="Where training starts, instead of what suits.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Passes of contrastive training after that, instead of what suits.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial weights, order and dropout.")] = 0,
) -> None:
    """Train on real pictures with **English** names only, then ask in fourteen languages.

    Reports retrieval in both directions and zero-shot accuracy on held-out pictures, each beside its chance level, and
    writes `model/`, `report.md`, `report.json` and `queries.png`. Frozen features are kept in the cache: a second run
    only trains.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    with _plain_errors():
        from freezealign.demo import run_demo
        from freezealign.demo.run import load_data

        report = run_demo(
            output,
            load_data(data.value, stamps, fold),
            encoders=(image_encoder, text_encoder),
            recipe=recipe.value,
            init=None if init is None else init.value,
            epochs=epochs,
            seed=seed,
            announce=lambda stage: console.rule(stage, align="left"),
        )
    for title, header, rows in report.tables():
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(f"Saved [bold]{output}[/]: model/, report.md, report.json, queries.png")


@app.command()
def encoders(
    modality: Annotated[str | None, typer.Argument(help="Only those of one modality: image or text.")] = None,
) -> None:
    """List the short names of encoders. Any Hugging Face id or local folder works too."""
    from rich.console import Console
    from rich.table import Table

    from freezealign.registry import list_encoders

    table = Table("name", "modality", "backend", "from")
    for reference in list_encoders(modality):
        origin = f"package {reference.package}" if reference.package else reference.source
        table.add_row(reference.name, reference.modality, reference.backend, origin)
    Console().print(table)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Show what went wrong as one message instead of a traceback, and exit with 1."""
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        typer.secho(f"freezealign: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
