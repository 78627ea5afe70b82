"""``freezealign toy``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def toy(
    output: Annotated[Path, typer.Option(help="Folder for toy.csv, toy.json and toy.png.")] = Path("toy-output"),
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Fewer and smaller spaces, trained for fewer steps: seconds instead of a minute. It shows what "
            "the study does; its numbers are too uncertain to learn from.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the spaces and of training.")] = 0,
) -> None:
    """Show on synthetic spaces that alignment before training predicts the loss after it, and where it does not."""
    from freezealign.alignment.toy import ToySettings, describe, run_toy

    study = run_toy(output, ToySettings.small(seed=seed) if quick else ToySettings(seed=seed))
    typer.echo(f"{describe(study)}\nSaved {output}: toy.csv, toy.json, toy.png")
