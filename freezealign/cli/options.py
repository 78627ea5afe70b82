"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Recipe = Literal["auto", "token", "pooled", "linear", "glu", "kernel", "relative"]

ImageEncoder = Annotated[str, typer.Option(help="A name from 'freezealign encoders', a hub id or a folder.")]
TextEncoder = Annotated[str, typer.Option(help="Likewise.")]
Init = Annotated[
    Literal["closed-form", "random"] | None, typer.Option(help="Where training starts, instead of what suits.")
]
ItemsABatch = Annotated[int, typer.Option(min=1, help="Items a forward pass.")]
EncoderPrecision = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(help="What encoders run in, instead of what is fastest and agrees with float32."),
]
EncoderBackend = Annotated[
    Literal["torch", "openvino", "onnx"] | None, typer.Option(help="What runs encoders, instead of what is fastest.")
]
