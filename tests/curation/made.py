"""Small pools that the tests make themselves, in each of the forms in which pools are found."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from freezealign.curation import Pool, Prototypes, open_pool
from freezealign.features import FeatureStore, Origin
from freezealign.features.shard import ShardBuilder

FORMS = ("store", "arrays", "tables")
WIDTH = 6
ORIGIN = Origin("made", "0" * 64, {"size": 8})


def make_vectors(n: int = 40, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def make_store(vectors: np.ndarray, captions: list[str] | None = None, ids: list[str] | None = None) -> FeatureStore:
    """A store of images and captions, whose features are the same vectors."""
    n, builder = len(vectors), ShardBuilder("float32")
    ids = [f"pair-{i}" for i in range(n)] if ids is None else ids
    captions = [f"caption {i}" for i in range(n)] if captions is None else captions
    for modality in ("image", "text"):
        builder.add_features(modality, {"sentence_embedding": torch.from_numpy(vectors)}, np.arange(n))
    builder.add_items(ids, {"image": [1] * n, "text": [1] * n}, {"text": captions})
    return FeatureStore.from_shards({"image": ORIGIN, "text": ORIGIN}, [builder.build().columns])


def write_arrays(folder: Path, vectors: np.ndarray, parts: int = 3, **columns: list) -> Path:
    """Embeddings and metadata as clip-retrieval writes them, with part 10 behind part 2."""
    import pyarrow
    from pyarrow import parquet

    columns.setdefault("image_path", [f"pair-{i}" for i in range(len(vectors))])
    columns.setdefault("caption", [f"caption {i}" for i in range(len(vectors))])
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, rows in zip([0, 2, 10, 11, 12], np.array_split(np.arange(len(vectors)), parts)):
        for name in ("img_emb", "text_emb"):
            np.save(folder / name / f"{name}_{number}.npy", vectors[rows].astype(np.float16))
        table = pyarrow.table({key: [values[row] for row in rows] for key, values in columns.items()})
        parquet.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
    return folder


def write_tables(folder: Path, vectors: np.ndarray, parts: int = 2) -> Path:
    """Parquet files with a column of vectors, a few rows a group."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(np.array_split(np.arange(len(vectors)), parts)):
        columns = {
            "key": [f"pair-{i}" for i in rows],
            "TEXT": [f"caption {i}" for i in rows],
            "LICENSE": ["CC0" if i % 2 else None for i in rows],
            "image_embedding": [vectors[i].tolist() for i in rows],
        }
        parquet.write_table(pyarrow.table(columns), folder / f"part-{number}.parquet", row_group_size=7)
    return folder


def make_pool(form: str, folder: Path, vectors: np.ndarray) -> Pool:
    if form == "store":
        make_store(vectors).save(folder / "store")
        return open_pool(folder / "store")
    write = {"arrays": write_arrays, "tables": write_tables}[form]
    return open_pool(write(folder / form, vectors))


def make_prototypes(concepts: int = 3, seed: int = 1, width: int = WIDTH) -> Prototypes:
    vectors = make_vectors(concepts, seed, width)
    return Prototypes.from_vectors(vectors, [f"concept {i}" for i in range(concepts)])


def cosines(vectors: np.ndarray, prototypes: Prototypes) -> np.ndarray:
    """(C, n) in float64."""
    units = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return prototypes.vectors.numpy().astype(np.float64) @ units.T


def write_shards(folder: Path, n: int = 12) -> Path:
    """Three shards as img2dataset writes them, pictures called pair-0, pair-1, …"""
    folder.mkdir()
    for number, rows in enumerate(np.array_split(np.arange(n), 3)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as archive:
            for row in rows:
                picture, text = folder / f"pair-{row}.png", folder / f"pair-{row}.txt"
                Image.new("RGB", (8, 8), (20 * int(row), 0, 0)).save(picture)
                text.write_text(f"caption {row}")
                for path in (picture, text):
                    archive.add(path, path.name)
                    path.unlink()
    return folder
