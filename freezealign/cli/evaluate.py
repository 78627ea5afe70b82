"""``freezealign eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freezealign.cli.options import EncoderBackend, EncoderPrecision, ItemsABatch
from freezealign.words import printable


def evaluate(
    model: Annotated[str, typer.Argument(help="A folder that 'freezealign train' wrote, or a hub id.")],
    suite: Annotated[str, typer.Argument(help="A suite's YAML file, or one that comes along: offline, poster.")],
    output: Annotated[Path, typer.Option(help="Folder for results, pictures, report.md and report.html.")],
    data: Annotated[Path, typer.Option(help="Folder that the suite's paths start from.")] = Path(),
    name: Annotated[str | None, typer.Option(help="What the model is called there, else as its folder.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task of the suite; repeat it for several.")] = None,
    batch_size: ItemsABatch = 32,
    encoder_precision: EncoderPrecision = None,
    encoder_backend: EncoderBackend = None,
) -> None:
    """Evaluate a model on a suite of tasks and write one report.

    Finished tasks are kept: run it again after an interruption and it goes on; run it with another model and the same
    `--output`, and the report puts both side by side. A task whose data is not there is noted, and the others are run.
    `freezealign eval my-model offline --data . --output results/` needs only the Tux Paint stamps (`make stamps`).
    """
    from freezealign.evaluation.suites import run_suite
    from freezealign.model import FreezeAlign

    records = run_suite(
        FreezeAlign.from_pretrained(model, dtype=encoder_precision, backend=encoder_backend),
        suite,
        output,
        name=name or Path(model).resolve().name,
        root=data,
        tasks=task,
        batch_size=batch_size,
        announce=lambda line: typer.echo(printable(line)),
    )
    failed = [key for key, record in records.items() if "error" in record]
    typer.echo(f"{len(records) - len(failed)} of {len(records)} tasks. Saved {output}: report.md, report.html")
    if failed:
        raise typer.Exit(1)
