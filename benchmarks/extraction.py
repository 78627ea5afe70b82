"""``extract_features`` from JPEG files on disk, against a plain loop over the same files and the same model.

python benchmarks/extraction.py            # writes benchmarks/RESULTS.md

The loop is what one writes by hand: open, transform, stack, run the model in eval mode without gradients, take the
mean over the feature map, and save all as float16 with ``np.save`` at the end. Batches are of one size on both sides.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from report import ratio, record
from timm.data import create_transform, resolve_model_data_config

from freezealign import FreezeAlign
from freezealign.samples import load_openmoji

PICTURES, BATCH, REPEATS = 192, 32, 3
SIZE, QUALITY = (640, 480), 90
MODELS = {"efficientnet-lite0": "tf_efficientnet_lite0", "efficientnet-lite2": "tf_efficientnet_lite2"}


def write_pictures(folder: Path) -> list[Path]:
    """Write photo-like JPEG files: drawings on clouds of every scale, with some noise of a sensor."""
    rng, paths = np.random.default_rng(0), []
    for number, sample in enumerate(load_openmoji().train[:PICTURES]):
        picture = Image.new("RGB", SIZE)
        for cells in (3, 12, 48, 192):
            coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
            picture = Image.blend(picture, coarse.resize(SIZE, Image.Resampling.BICUBIC), 0.35)
        drawing = sample.image().convert("RGB")
        picture.paste(Image.blend(drawing, picture.crop((0, 0, *drawing.size)), 0.3), (170, 90))
        noisy = np.asarray(picture) + rng.normal(0, 6, (*SIZE[::-1], 3))
        paths.append(folder / f"{number:04d}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=QUALITY)
    return paths


def compare(name: str, paths: list[Path], folder: Path) -> str:
    """Measure both and return a line of the table."""
    model = FreezeAlign({"image": name}, recipe="pooled", dim=64)
    plain = timm.create_model(MODELS[name], pretrained=False).eval()
    plain.load_state_dict(model.encoders["image"].encoder.model.state_dict())
    transform = create_transform(**resolve_model_data_config(plain), is_training=False)
    pairs, store = [{"image": path} for path in paths], folder / "store"

    @torch.no_grad()
    def loop() -> None:
        features = []
        for start in range(0, len(paths), BATCH):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
            features.append(plain.forward_features(torch.stack([transform(image) for image in images])).mean((2, 3)))
        np.save(folder / "features.npy", torch.cat(features).half().numpy())

    def ours() -> None:
        shutil.rmtree(store, ignore_errors=True)
        model.extract_features(pairs, store, modalities=["image"], batch_size=BATCH, show_progress_bar=False)

    gain = ratio(loop, ours, REPEATS)
    return f"| {name} | {gain:.2f} |"


def main() -> None:
    """Measure and write the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_pictures(folder)
        kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1000
        rows = [compare(name, paths, folder) for name in MODELS]
    header = (
        f"{PICTURES} JPEG files of {SIZE[0]} x {SIZE[1]} pixels, {kilobytes:.0f} kB each; batches of {BATCH}; pooled "
        f"float16 to disk; median of {REPEATS}.\n\n| encoder | times faster than a plain loop |\n|---|---|"
    )
    record("Extraction", header, rows)


if __name__ == "__main__":
    main()
