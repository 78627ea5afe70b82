"""``freezealign train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from freezealign.cli.options import ImageEncoder, Init, Recipe, TextEncoder


def train(
    stores: Annotated[list[Path], typer.Argument(help="Feature stores that 'freezealign extract' wrote.")],
    output: Annotated[Path, typer.Option(help="Folder for the model and, below it, checkpoints/.")],
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
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
    """Train projectors on feature stores and save the model.

    Run it again after an interruption, and it goes on from the last checkpoint, exactly. Several processes:
    `torchrun --nproc-per-node 8 -m freezealign train …`.
    """
    from freezealign.features import FeatureStore
    from freezealign.model import FreezeAlign

    model = FreezeAlign({"image": image_encoder, "text": text_encoder}, recipe=recipe, dim=dim, seed=seed)
    history = model.fit(
        [FeatureStore.open(store) for store in stores],
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
        data_name=", ".join(store.name for store in stores),
        seed=seed,
    )
    model.save_pretrained(output)
    typer.echo(f"{history.plan}\n{len(history.steps):,} steps. Saved {output}")
