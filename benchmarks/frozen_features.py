"""What computing frozen features once and reading ahead are worth: ratios, both sides in one run.

python benchmarks/frozen_features.py            # writes benchmarks/RESULTS.md

Real encoders, OpenMoji drawings. Each figure is the median of interleaved repeats, so that a noisy machine hits both.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from report import REPEATS, ratio, record
from timm.data import create_transform, resolve_model_data_config

from freezealign import FreezeAlign
from freezealign.images import read_image
from freezealign.samples import load_openmoji, pairs

PAIRS, EPOCHS, IMAGES = 64, 5, 128
QUIET = {"show_progress_bar": False}


def main() -> None:
    """Measure and write the table."""
    data = pairs(load_openmoji().train)
    model = FreezeAlign(["efficientnet-lite2", "use-multilingual"], dim=512, seed=0)
    rows = [cached_training(model, data[:PAIRS]), encoding(model, [pair["image"]() for pair in data[:IMAGES]])]
    header = (
        f"Real encoders on OpenMoji drawings; median of {REPEATS}.\n\n| what | against | times faster |\n|---|---|---|"
    )
    record("Frozen features", header, rows)


def cached_training(model: FreezeAlign, data: list[dict[str, Any]]) -> str:
    """``fit`` with and without the cache, extraction included."""
    options = {"epochs": EPOCHS, "batch_size": 32, **QUIET}
    gain = ratio(
        lambda: model.fit(data, cache_features=False, **options),
        lambda: model.fit(data, cache_features=True, **options),
    )
    return f"| `fit`, {EPOCHS} epochs over {PAIRS} pairs, features cached | encoding anew in every epoch | {gain:.1f} |"


def encoding(model: FreezeAlign, images: list[Any]) -> str:
    """``encode`` against reading, transforming and running the same timm model in a plain loop."""
    plain = timm.create_model("tf_efficientnet_lite2", pretrained=False).eval()
    plain.load_state_dict(model.encoders["image"].encoder.model.state_dict())
    transform = create_transform(**resolve_model_data_config(plain), is_training=False)
    blocks = model.tower("image").blocks

    @torch.no_grad()
    def loop() -> None:
        for start in range(0, len(images), 32):
            batch = torch.stack([transform(read_image(image)) for image in images[start : start + 32]])
            features = plain.forward_features(batch).flatten(2).transpose(1, 2)
            output = {"token_embeddings": features, "cls_token_embeddings": features.mean(1)}
            for block in blocks:
                output = block(output)

    gain = ratio(loop, lambda: model.encode_image(images, **QUIET))
    return f"| `encode`, {IMAGES} pictures, EfficientNet-Lite2 | a plain loop over the same model | {gain:.2f} |"


if __name__ == "__main__":
    main()
