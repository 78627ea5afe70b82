"""Frozen encoders as they run by default, against the same models run by sentence-transformers or by hand.

python benchmarks/engines.py            # writes benchmarks/RESULTS.md
python benchmarks/engines.py 16         # a try with 16 pictures and texts, once; writes nothing

All sides read the same files and texts and give the same vectors, which is checked. sentence-transformers runs the very
same blocks in torch, in the best of several batch sizes; where ``optimum`` is installed, its OpenVINO as well. The bare
engine is given tensors that are ready: what ``extract_features`` reaches of it is how well reading overlaps.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from extraction import write_pictures
from report import ratio, record

from freezealign import FreezeAlign, FrozenEncoder
from freezealign.encoders.packaged import PACKAGES
from freezealign.encoders.timm import TimmEncoder
from freezealign.samples import load_openmoji

BATCH, BATCH_SIZES, TEXTS, REPEATS, TINY_REPEATS = 32, (8, 32, 128), 2000, 5, 1
VIT = "vit_small_patch14_dinov2"
COSINE = 0.998
"""Least cosine of any vector: the engines compare the first items at .999, others may lie a little lower."""
HEAD = "| what | against | times faster | least cosine |\n|---|---|---|---|"


class Sizes:
    """How much is measured: all, or what the command line says."""

    def __init__(self, count: int | None) -> None:
        self.tiny = count is not None
        self.pictures, self.texts = count or 192, count or TEXTS
        self.repeats = TINY_REPEATS if self.tiny else REPEATS
        self.batch_sizes = (BATCH,) if self.tiny else BATCH_SIZES


def vit(backend: str | None) -> FrozenEncoder:
    """Return a ViT-S/14 at 224 pixels; random weights, the same each time."""
    torch.manual_seed(0)
    model = timm.create_model(VIT, pretrained=False, img_size=224, num_classes=0).eval()
    return FrozenEncoder(TimmEncoder(model, 224), backend=backend, dtype=None if backend is None else "float32")


def named(name: str) -> Callable[[str | None], FrozenEncoder]:
    """Return what loads an encoder by name, in its default engine or in torch and float32."""
    return lambda backend: FrozenEncoder(name, backend=backend, dtype=None if backend is None else "float32")


def model_of(encoder: FrozenEncoder) -> FreezeAlign:
    """Return a model with one tower and the blocks of recipe ``linear``, seeded."""
    return FreezeAlign([encoder], recipe="linear", dim=64, seed=0, device="cpu")


def fastest(encode: Callable[[int], Any], sizes: tuple[int, ...]) -> int:
    """Return the batch size in which ``encode`` takes least."""
    best, *others = sizes
    for size in others:
        if ratio(lambda best=best: encode(best), lambda size=size: encode(size), 1) > 1:
            best = size
    return best


def compare(what: str, load: Callable[[str | None], FrozenEncoder], items: list[Any], sizes: Sizes) -> str:
    """Measure ``encode`` against sentence-transformers on the same modules, and return a line of the table."""
    ours, torchs = model_of(load(None)), model_of(load("torch")).to_sentence_transformer()
    size = fastest(lambda size: torchs.encode(items, batch_size=size, show_progress_bar=False), sizes.batch_sizes)

    def theirs() -> np.ndarray:
        return torchs.encode(items, batch_size=size, show_progress_bar=False)

    def mine() -> np.ndarray:
        return ours.encode(items, batch_size=BATCH, show_progress_bar=False)

    return line(what, f"sentence-transformers, torch, batches of {size}", theirs, mine, sizes)


def line(what: str, against: str, slow: Callable[[], Any], fast: Callable[[], Any], sizes: Sizes) -> str:
    """Measure two that give the same vectors, and return a line of the table."""
    both = [np.asarray(run(), np.float32) for run in (slow, fast)]
    cosines = np.einsum("ij,ij->i", *(vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in both))
    if not cosines.min() > COSINE:
        raise RuntimeError(f"{what}: the vectors differ, the least cosine is {cosines.min():.5f}.")
    return f"| {what} | {against} | {ratio(slow, fast, sizes.repeats):.2f} | {cosines.min():.5f} |"


def openvino_line(texts: list[str], sizes: Sizes) -> list[str]:
    """Measure the texts against sentence-transformers' own OpenVINO, where it can be run."""
    if importlib.util.find_spec("optimum") is None:
        return []
    from sentence_transformers import SentenceTransformer

    folder = str(PACKAGES["all-minilm-l6-v2"].folder())
    theirs = SentenceTransformer(folder, backend="openvino", device="cpu")
    encoder = FrozenEncoder("all-minilm-l6-v2")
    what, against = "all-MiniLM-L6-v2, its own vectors", "sentence-transformers, OpenVINO"

    def slow() -> np.ndarray:
        return theirs.encode(texts, batch_size=BATCH, show_progress_bar=False)

    def fast() -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        vectors = np.empty((len(texts), encoder.get_embedding_dimension()), np.float32)
        for start in range(0, len(texts), BATCH):
            rows = order[start : start + BATCH]
            vectors[rows] = encoder(encoder.collate([texts[row] for row in rows]))["sentence_embedding"].numpy()
        return vectors

    return [line(what, against, slow, fast, sizes)]


def extraction_line(paths: list[Path], folder: Path, sizes: Sizes) -> str:
    """Measure what extraction to disk reaches of the bare engine: its vectors, from tensors that are ready."""
    encoder = FrozenEncoder("efficientnet-lite2")
    model, store = model_of(encoder), folder / "store"
    batches = [encoder.preprocess(list(paths[start : start + BATCH])) for start in range(0, len(paths), BATCH)]

    def bare() -> np.ndarray:
        return torch.cat([encoder(batch)["cls_token_embeddings"] for batch in batches]).numpy()

    def extract() -> np.ndarray:
        shutil.rmtree(store, ignore_errors=True)
        pairs = [{"image": path} for path in paths]
        features = model.extract_features(pairs, store, level="pooled", batch_size=BATCH, show_progress_bar=False)
        return features["image"].vectors().numpy()

    return line("EfficientNet-Lite2, extraction to disk", "the bare engine, tensors ready", bare, extract, sizes)


def main(count: int | None) -> None:
    """Measure, and write the table unless this is a try."""
    sizes = Sizes(count)
    samples = load_openmoji().train
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_pictures(folder)[: sizes.pictures]
        pictures = [str(path) for path in paths]
        texts = [f"{first.captions['en']} and {second.captions['en']}" for first in samples for second in samples[:2]]
        texts = texts[: sizes.texts]
        rows = [
            compare("EfficientNet-Lite2, JPEG files", named("efficientnet-lite2"), pictures, sizes),
            compare("ViT-S/14 at 224, JPEG files", vit, pictures, sizes),
            compare("all-MiniLM-L6-v2, texts", named("all-minilm-l6-v2"), texts, sizes),
            *openvino_line(texts, sizes),
            extraction_line(paths, folder, sizes),
        ]
    header = (
        f"Vectors of both sides agree. {len(paths)} JPEG files of 640 x 480 "
        f"pixels, {len(texts):,} texts, batches of {BATCH}; median of {sizes.repeats}.\n\n{HEAD}"
    )
    if sizes.tiny:
        print(header, *rows, sep="\n")
    else:
        record("Engines", header, rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
