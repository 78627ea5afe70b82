"""Concepts from a path: pictures in folders, names in a text file, or prototypes that were saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from freezealign.batch import default_device
from freezealign.curation.pools import Modality, Pool
from freezealign.curation.prototypes import TEMPLATES, Prototypes
from freezealign.encoders import FrozenEncoder
from freezealign.features import FeatureStore, Level
from freezealign.features.job import extract_features
from freezealign.files import is_file, is_folder
from freezealign.space.recipes import pooled_extraction


@dataclass(frozen=True)
class _OneEncoder:
    """A frozen encoder that sees examples as a model with a projector behind it would."""

    encoder: FrozenEncoder

    def extract_features(
        self, data: Iterable[Any], *, level: Level, modalities: Sequence[str], batch_size: int, show_progress_bar: bool
    ) -> FeatureStore:
        extraction = pooled_extraction(self.encoder, dtype="float32", batch_size=batch_size)
        return extract_features(data, extraction, default_device(), None, False, "local", show_progress_bar)


def read_concepts(
    path: str | PathLike[str],
    pool: Pool,
    modality: Modality = "image",
    encoder: str | None = None,
    shots: int | None = None,
    templates: Sequence[str] = TEMPLATES,
    seed: int = 0,
) -> Prototypes:
    """Return the prototypes that ``path`` describes, in the space of a pool.

    Args:
        path: A folder with one sub-folder of pictures a concept, a ``.txt`` file with one name a line, or a
            ``.safetensors`` file that :meth:`Prototypes.save` wrote.
        pool: What they will be compared with.
        modality: That of the pool's vectors.
        encoder: What made the pool's vectors, where the pool does not tell.
        shots: Pictures a concept, drawn at random where there are more.
        templates: Prompts for names, each with ``{}``.
        seed: Of the draw.

    Raises:
        FileNotFoundError: If there is no such path.
        ValueError: If pictures meet a pool of texts or names one of images, the encoder is unknown, or an option does
            not apply.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        if encoder or shots or tuple(templates) != TEMPLATES:
            raise ValueError(f"{path} holds finished prototypes; encoder, shots and templates do not apply to it.")
        return Prototypes.load(path)
    if not (is_folder(path) or (is_file(path) and path.suffix == ".txt")):
        raise FileNotFoundError(f"there are no concepts in {path}: no folder of pictures, .txt or .safetensors file.")
    needed = "image" if is_folder(path) else "text"
    if needed != modality:
        raise ValueError(
            f"{path} describes concepts by {needed}s, and the pool's vectors are of {modality}s. Compare like with "
            f"like (modality '{needed}'), or pass prototypes of a model with a shared space as .safetensors."
        )
    name = encoder or (pool.origin and pool.origin.name)
    if not name:
        raise ValueError(f"the pool {pool.name} does not tell which encoder made its vectors; name it.")
    model = _OneEncoder(FrozenEncoder(name, modality).to(default_device()).eval())
    if needed == "image":
        return Prototypes.from_images(model, path, shots, seed)
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return Prototypes.from_texts(model, dict.fromkeys(line.strip() for line in lines if line.strip()), templates)
