"""``freezealign rank``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from freezealign.cli.options import EncoderBackend, EncoderPrecision, ItemsABatch
from freezealign.words import printable

Data = Annotated[
    str,
    typer.Argument(
        help="Captioned pictures: openmoji, tuxpaint (with --stamps), a folder, a .csv, .tsv, .jsonl or .parquet "
        "file, or webdataset shards. A few hundred pairs tell much, a few thousand are plenty."
    ),
]


def rank(
    data: Data,
    vision: Annotated[list[str], typer.Option(help="Image encoder; repeat it for several.")],
    text: Annotated[list[str], typer.Option(help="Text encoder; repeat it for several.")],
    output: Annotated[Path, typer.Option(help="Folder for ranking.json, ranking.png and features/.")],
    metric: Annotated[
        list[str] | None, typer.Option(help="Measure; the first decides. cka and mutual_knn by default.")
    ] = None,
    layers: Annotated[
        Literal["last", "all"], typer.Option(help="all also finds which layers are most alike.")
    ] = "last",
    max_items: Annotated[int, typer.Option(min=4, help="Items for measures that compare all with all.")] = 10_000,
    batch_size: ItemsABatch = 32,
    stamps: Annotated[Path | None, typer.Option(help="Folder of the Tux Paint stamps.")] = None,
    seed: Annotated[int, typer.Option(help="Of samples, shuffles and halves.")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first encoder that fails and at the first bad item.")
    ] = False,
    encoder_precision: EncoderPrecision = None,
    encoder_backend: EncoderBackend = None,
) -> None:
    """Find the vision and text encoder whose spaces are most alike, **before** training anything.

    Measures every image encoder with every text encoder, prints the ranking with 95% intervals and calibrated scores
    (0 = not above shuffled pairs), and says which pair to take. Features are kept in the output folder: with one more
    encoder, only that one runs.
    """
    from rich.console import Console

    from freezealign.alignment import rank_encoders

    images, texts = (
        _running(names, kind, encoder_backend, encoder_precision) for names, kind in ((vision, "image"), (text, "text"))
    )
    ranking = rank_encoders(
        images,
        texts,
        _captioned(data, stamps),
        metrics=metric or ("cka", "mutual_knn"),
        layers=layers,
        path=output / "features",
        max_items=max_items,
        batch_size=batch_size,
        seed=seed,
        strict=strict,
    )
    ranking.save(output)
    console = Console()
    for header, rows in (ranking.cost_summary(), ranking.summary()):
        _print_table(console, header, rows)
    for line in (*ranking.left_out_summary(), ranking.recommendation()):
        console.print(printable(line), highlight=False, markup=False)
    console.print(f"Saved [bold]{output}[/]: ranking.json, ranking.png, features/")


def _print_table(console: Any, header: list[str], rows: list[list[str]]) -> None:
    """Print a table without lines between columns, which terminals have no room for."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in header:
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _running(names: list[str], modality: str, backend: str | None, dtype: str | None) -> list[Any]:
    """Return the names, or where an engine is asked for the encoders, run by it."""
    from freezealign.encoders import FrozenEncoder
    from freezealign.encoders.frozen import set_engines

    if not (backend or dtype):
        return list(names)
    encoders = [FrozenEncoder(name, modality) for name in names]
    set_engines(encoders, backend, dtype)
    return encoders


def _captioned(data: str, stamps: Path | None) -> Any:
    """Return what a name of sample data stands for, with English captions; any other name as it is."""
    if data not in ("openmoji", "tuxpaint"):
        return data
    from freezealign.demo import load_data

    samples = load_data(data, stamps).samples
    return [{"image": sample.image, "text": sample.captions["en"], "id": sample.key} for sample in samples]
