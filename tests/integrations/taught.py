"""A small model that has learnt something, for tests that compare its scores with a public benchmark's."""

from __future__ import annotations

from PIL import Image

from freezealign import FreezeAlign

CLASSES = [" ".join(["a red apple", *map(str, range(count))]) for count in range(0, 12, 2)]
"""Every second of the texts that the model is taught."""


def plain_colours() -> list[Image.Image]:
    """Twelve plain colours, which even encoders that learnt nothing tell apart."""
    return [Image.new("RGB", (30 + index, 30), (20 * index, 97 * index % 256, 53 * index % 256)) for index in range(12)]


def teach(model: FreezeAlign, images: list[Image.Image], texts: list[str]) -> FreezeAlign:
    """Return the model, taught enough for the nearest item to differ from query to query."""
    options = {"epochs": 20, "batch_size": 12, "learning_rate": 1e-2, "seed": 0, "show_progress_bar": False}
    model.fit(list(zip(images, texts)), schedule="paper", **options)
    return model
