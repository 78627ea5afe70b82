"""``freezealign extract``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from freezealign.cli.options import EncoderBackend, EncoderPrecision, ImageEncoder, TextEncoder

Data = Annotated[
    str,
    typer.Argument(
        help="A folder of pictures with captions, a .csv, .tsv, .jsonl or .parquet file, or webdataset shards "
        "('shards/{00000..00012}.tar')."
    ),
]
Level = Annotated[
    Literal["pooled", "tokens"],
    typer.Option(help="pooled: one vector an item, for every recipe but token. tokens: everything."),
]
StoreDtype = Annotated[Literal["float16", "float32", "int8"], typer.Option(help="What embeddings are stored as.")]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="ray spreads the shards over a Ray cluster.")]


def extract(
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder of the feature store.")],
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
    image_column: Annotated[str, typer.Option(help="Column of paths, addresses or bytes.")] = "image",
    text_column: Annotated[str, typer.Option(help="Column of captions.")] = "text",
    id_column: Annotated[str, typer.Option(help="Column of names, where there is one.")] = "id",
    level: Level = "pooled",
    dtype: StoreDtype = "float16",
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs a forward pass.")] = 32,
    shard_size: Annotated[int | None, typer.Option(min=1, help="Pairs a file; 8,192 pooled, 1,024 tokens.")] = None,
    views: Annotated[int, typer.Option(min=1, help="Rows an image has: itself and random crops.")] = 1,
    engine: Engine = "local",
    strict: Annotated[
        bool, typer.Option(help="Stop at the first bad item instead of skipping and listing it.")
    ] = False,
    encoder_precision: EncoderPrecision = None,
    encoder_backend: EncoderBackend = None,
) -> None:
    """Run two frozen encoders over pairs once, and keep what they give on disk.

    Run it again after an interruption, and it goes on where it stopped; bad items are skipped and listed in the store's
    `shards/*.json`. Train on it with `freezealign train STORE`, or `model.fit(FeatureStore.open("STORE"))`.
    """
    from freezealign.data.sources import open_pairs
    from freezealign.inputs import skipped_pairs
    from freezealign.model import FreezeAlign

    encoders = {"image": image_encoder, "text": text_encoder}
    model = FreezeAlign(encoders, dtype=encoder_precision, backend=encoder_backend)
    columns = {"image": image_column, "text": text_column, "id": id_column}
    renamed = {role: column for role, column in columns.items() if column != role}
    store = model.extract_features(
        open_pairs(data, **renamed),
        output,
        level=level,
        dtype=dtype,
        batch_size=batch_size,
        shard_size=shard_size,
        views=views,
        engine=engine,
        strict=strict,
    )
    typer.echo(
        f"{store}, {store.nbytes / 2**20:,.1f} MiB, {len(skipped_pairs(store.skipped)):,} pairs skipped: {output}"
    )
