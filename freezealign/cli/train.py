"""``freezealign train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from freezealign.cli.options import Init, Recipe


def train(
    data: Annotated[
        list[str],
        typer.Argument(
            help="Feature stores that 'freezealign extract' wrote; or embeddings: .npy files, one a modality "
            "(images.npy texts.npy, or image=PATH text=PATH), a folder as clip-retrieval writes it, Parquet files."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the model and, below it, checkpoints/.")],
    image_encoder: Annotated[
        str | None, typer.Option(help="What made the image features; embeddings need none, and are then all it takes.")
    ] = None,
    text_encoder: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="image=COLUMN: the column of a modality's vectors in Parquet.")
    ] = None,
    recipe: Annotated[Recipe, typer.Option(help="The trained blocks; auto lets the number of pairs decide.")] = "auto",
    dim: Annotated[int, typer.Option(min=1, help="Width of the shared space.")] = 1024,
    weight: Annotated[
        list[float] | None, typer.Option(help="One for each store: how often a pair of it is drawn in an epoch.")
    ] = None,
    init: Init = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="Passes over the data, instead of what suits.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pairs a step, over all processes.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the schedule.")] = None,
    loss: Annotated[Literal["infonce", "sigmoid"], typer.Option(help="Contrastive loss.")] = "infonce",
    class_names: Annotated[
        bool, typer.Option("--class-names", help="Learn from the names of the image encoder's own classes too.")
    ] = False,
    precision: Annotated[Literal["no", "bf16", "fp16"] | None, typer.Option(help="Autocast.")] = None,
    report_to: Annotated[list[str] | None, typer.Option(help="Tracker: tensorboard, wandb, …")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout.")] = 0,
) -> None:
    """Train projectors on feature stores, or on embeddings that you have already, and save the model.

    Run it again after an interruption, and it goes on from the last checkpoint, exactly. Several processes:
    `torchrun --nproc-per-node 8 -m freezealign train …`.
    """
    from freezealign.encoders import FrozenEncoder
    from freezealign.features.embeddings import open_sources
    from freezealign.model import FreezeAlign

    names = {"image": image_encoder, "text": text_encoder}
    encoders = {name: FrozenEncoder(encoder, name) for name, encoder in names.items() if encoder is not None}
    if odd := [one for one in column or () if "=" not in one]:
        raise ValueError(f"--column {odd[0]}: say whose vectors it holds, as --column image={odd[0]}.")
    stores = open_sources(data, dict(one.split("=", 1) for one in column or ()), encoders)
    towers = {**stores[0].encoders, **encoders}
    if missing := sorted(set(stores[0].origins) - set(towers)):
        made = ", ".join(f"--{name}-encoder {stores[0].origins[name].name}" for name in missing)
        raise ValueError(f"{data[0]} holds features of encoders; name them: {made}.")
    model = FreezeAlign(towers, recipe=recipe, dim=dim, seed=seed)
    history = model.fit(
        stores,
        weights=tuple(weight) if weight else None,
        init=init,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        loss=loss,
        class_names=class_names,
        precision=precision,
        report_to=tuple(report_to or ()),
        output_dir=output,
        data_name=", ".join(Path(one).name for one in data),
        seed=seed,
    )
    model.save_pretrained(output)
    typer.echo(f"{history.plan}\n{len(history.steps):,} steps. Saved {output}")
