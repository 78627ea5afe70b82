"""``freezealign demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from freezealign.cli.options import EncoderBackend, EncoderPrecision, ImageEncoder, Init, Recipe, TextEncoder


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the model, the report and the picture.")] = Path(
        "demo-output"
    ),
    data: Annotated[
        Literal["openmoji", "tuxpaint"],
        typer.Option(help="OpenMoji comes with the packages; Tux Paint needs --stamps."),
    ] = "openmoji",
    stamps: Annotated[
        Path | None, typer.Option(help="Folder of the Tux Paint stamps; 'make stamps' fetches it.")
    ] = None,
    fold: Annotated[int, typer.Option(min=0, max=4, help="Which fifth of Tux Paint is held out.")] = 0,
    image_encoder: ImageEncoder = "efficientnet-lite2",
    text_encoder: TextEncoder = "use-multilingual",
    recipe: Annotated[
        Recipe, typer.Option(help="The trained blocks; auto lets the number of pairs decide, token is the paper's.")
    ] = "auto",
    init: Init = None,
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Passes of contrastive training after that, instead of what suits.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial weights, order and dropout.")] = 0,
    encoder_precision: EncoderPrecision = None,
    encoder_backend: EncoderBackend = None,
) -> None:
    """Train on real pictures with **English** names only, then ask in fourteen languages.

    Reports retrieval in both directions and zero-shot accuracy on held-out pictures, each beside its chance level, and
    writes `model/`, `report.md`, `report.json` and `queries.png`. Frozen features are kept in the cache: a second run
    only trains.
    """
    from rich.console import Console
    from rich.table import Table

    from freezealign.demo import load_data, run_demo

    console = Console()
    report = run_demo(
        output,
        load_data(data, stamps, fold),
        encoders=(image_encoder, text_encoder),
        recipe=recipe,
        init=init,
        epochs=epochs,
        seed=seed,
        dtype=encoder_precision,
        backend=encoder_backend,
        announce=lambda stage: console.rule(stage, align="left"),
    )
    for title, header, rows in report.tables():
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(f"Saved [bold]{output}[/]: model/, report.md, report.json, queries.png")
