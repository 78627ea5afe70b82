"""``freezealign encoders``."""

from __future__ import annotations

from typing import Annotated

import typer


def encoders(
    modality: Annotated[str | None, typer.Argument(help="Only those of one modality: image or text.")] = None,
) -> None:
    """List the short names of encoders. Any Hugging Face id or local folder works too."""
    from rich.console import Console
    from rich.table import Table

    from freezealign.encoders.registry import list_encoders

    table = Table("name", "modality", "backend", "from")
    for reference in list_encoders(modality):
        origin = f"package {reference.package}" if reference.package else reference.source
        table.add_row(reference.name, reference.modality, reference.backend, origin)
    Console().print(table)
