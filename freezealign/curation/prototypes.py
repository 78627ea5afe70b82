"""Prototypes: one vector a concept, from a few labelled images or from its name."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezealign.curation.pools import Modality, Pool
from freezealign.data.sources.folder import find_pictures
from freezealign.evaluation.prompts import ClassPrompts
from freezealign.features import Origin
from freezealign.features.job import extract_features
from freezealign.files import is_file, is_folder, read_arrays, read_lines, write_arrays_atomically
from freezealign.forms import parse_object
from freezealign.inputs import shorten
from freezealign.space import Space
from freezealign.space.recipes import build_tower
from freezealign.vectors import unit

FILE_KEY = "freezealign_prototypes"
TEMPLATES = ("{}",)
NEARLY = 1e-3


@dataclass(frozen=True)
class Prototypes:
    """One vector for each of C concepts: the mean of the unit vectors of its examples (CVPR 2025 system, curation).

    Args:
        names: The concepts.
        vectors: (C, d) float32 of unit length.
        origin: The encoder that made the vectors, where that is known.
        provenance: What they were made from: examples of each concept, shots, seed, what was skipped.

    Raises:
        ValueError: If names repeat, their number is not that of the vectors, or these are not of unit length.
    """

    names: tuple[str, ...]
    vectors: Tensor
    origin: Origin | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (
            self.vectors.ndim != 2
            or self.vectors.dtype != torch.float32
            or not bool(((self.vectors.norm(dim=1) - 1).abs() < NEARLY).all())
        ):
            raise ValueError(
                f"prototypes are float32 vectors (C, d) of unit length, got {self.vectors.dtype} of the shape "
                f"{tuple(self.vectors.shape)}; Prototypes.from_vectors makes them so."
            )
        if len(self.names) != len(self.vectors) or not self.names:
            raise ValueError(f"{len(self.names)} concepts have {len(self.vectors)} vectors; each needs one.")
        if twice := sorted(name for name, count in Counter(self.names).items() if count > 1):
            raise ValueError(f"each concept has one name of its own; {twice[:5]} stand there more than once.")
        examples, skipped = self.provenance.get("examples", {}), self.provenance.get("skipped", [])
        counts = examples.values() if isinstance(examples, dict) else [None]
        if not all(isinstance(count, int) for count in counts) or not isinstance(skipped, list):
            raise ValueError(f"provenance counts 'examples' and lists 'skipped', got {shorten((examples, skipped))}.")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_vectors(
        cls, vectors: Any, labels: Sequence[str], origin: Origin | None = None, **provenance: Any
    ) -> Prototypes:
        """Return the mean direction of the vectors (n, d) of each label, in the order in which labels first appear.

        Args:
            vectors: NumPy or torch; their lengths make no difference.
            labels: The concept of each.
            origin: The encoder that made them.
            **provenance: Whatever is worth knowing, as JSON.

        Raises:
            ValueError: If there is not one label a vector, or the vectors of a concept are not finite or cancel out.
        """
        vectors = unit(vectors)
        if len(labels) != len(vectors):
            raise ValueError(f"{len(vectors)} vectors have {len(labels)} labels; each needs one.")
        counts = Counter(labels)
        names = tuple(counts)
        number = {name: index for index, name in enumerate(names)}
        owners = torch.tensor([number[label] for label in labels], dtype=torch.long)
        sums = torch.zeros(len(names), vectors.shape[1]).index_add_(0, owners, vectors)
        lengths = sums.norm(dim=1)
        if bad := [name for name, length in zip(names, lengths.tolist()) if not 0 < length < float("inf")]:
            raise ValueError(f"the examples of {bad[:5]} have no mean direction: they are zero, NaN, or cancel out.")
        return cls(names, sums / lengths[:, None], origin, {"examples": dict(counts), **provenance})

    @classmethod
    def from_images(
        cls,
        model: Space,
        images: Mapping[str, Sequence[Any]] | str | PathLike[str],
        shots: int | None = None,
        seed: int = 0,
        batch_size: int = 32,
        show_progress_bar: bool = True,
    ) -> Prototypes:
        """Return prototypes of labelled images, as the model's frozen image encoder sees them.

        Args:
            model: A ``FreezeAlign`` whose frozen encoder and pooling are those of a pool extracted at level ``pooled``.
            images: From concept to images, or a folder with one sub-folder of pictures a concept.
            shots: Images a concept, drawn at random where there are more; all by default.
            seed: Of that draw.
            batch_size: Images a forward pass.
            show_progress_bar: Show progress if it takes longer than a second.

        Raises:
            ValueError: If no image of a concept can be read.
        """
        labelled = images if isinstance(images, Mapping) else labelled_pictures(images)
        chosen = []
        for name, items in labelled.items():
            drawn = np.arange(len(items))
            if shots is not None and len(items) > shots:
                drawn = np.sort(np.random.default_rng(seed).choice(len(items), shots, replace=False))
            chosen += [(name, items[index]) for index in drawn.tolist()]
        about = {"shots": shots, "seed": seed}
        return cls._from_items(model, "image", chosen, about, batch_size, show_progress_bar)

    @classmethod
    def from_texts(
        cls,
        model: Space,
        names: Iterable[str],
        templates: Sequence[str] = TEMPLATES,
        batch_size: int = 32,
        show_progress_bar: bool = True,
    ) -> Prototypes:
        """Return prototypes of class names in prompt templates, as the model's frozen text encoder reads them.

        Args:
            model: As for :meth:`from_images`.
            names: The concepts.
            templates: Each with ``{}`` where the name goes.
            batch_size: Prompts a forward pass.
            show_progress_bar: Show progress if it takes longer than a second.

        Raises:
            ValueError: If there is no name, or a template has no place for it.
        """
        asked = ClassPrompts(list(names), templates)
        prompts = [
            (str(name), prompt) for name, some in zip(asked.class_names[""], asked.prompts("")) for prompt in some
        ]
        about = {"templates": list(templates)}
        return cls._from_items(model, "text", prompts, about, batch_size, show_progress_bar)

    @classmethod
    def _from_items(
        cls,
        model: Space,
        modality: str,
        items: Sequence[tuple[str, Any]],
        about: Mapping[str, Any],
        batch_size: int,
        show_progress_bar: bool,
    ) -> Prototypes:
        if not items:
            raise ValueError("there are no examples to make prototypes of.")
        pairs = [{modality: item, "id": str(position)} for position, (_, item) in enumerate(items)]
        extraction = model.extraction("pooled", [modality], dtype="float32", batch_size=batch_size)
        store = extract_features(pairs, extraction, model.device, None, False, "local", show_progress_bar)
        labels = [items[int(position)][0] for position in store.ids]
        if lost := sorted({name for name, _ in items} - set(labels)):
            raise ValueError(f"no example of {lost[:5]} can be read; the first: {store.skipped[0].reason}")
        skipped = [{"concept": items[entry.index][0], "reason": entry.reason} for entry in store.skipped]
        about = {"modality": modality, **about, "skipped": skipped}
        return cls.from_vectors(store[modality].vectors(), labels, store.origins[modality], **about)

    def check(self, pool: Pool) -> None:
        """Raise a ``ValueError`` if their width, or the encoder where it is known, is not that of a pool's vectors."""
        pool.compare("the prototypes", self.vectors.shape[1], self.origin)

    def digest(self) -> str:
        """Return a SHA-256 over names and vectors."""
        names = json.dumps(self.names).encode()
        return hashlib.sha256(names + self.vectors.contiguous().numpy().tobytes()).hexdigest()

    def save(self, path: str | PathLike[str]) -> None:
        """Write one safetensors file that also holds names, origin and provenance."""
        about = {
            "names": self.names,
            "origin": None if self.origin is None else self.origin.to_json(),
            "provenance": self.provenance,
        }
        write_arrays_atomically(Path(path), {"vectors": self.vectors.numpy()}, {FILE_KEY: json.dumps(about)})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Prototypes:
        """Read what :meth:`save` wrote; raise a ``ValueError`` if it is missing, damaged, or something else."""
        path = Path(path)
        try:
            arrays, metadata = read_arrays(path)
            about = parse_object(path, metadata.get(FILE_KEY, ""), ABOUT)
            names, vectors = tuple(about["names"]), torch.from_numpy(arrays["vectors"])
            return cls(names, vectors, about["origin"], about["provenance"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} holds no prototypes that freezealign wrote ({error}).") from None


ABOUT: dict[str, Any] = {"names": list[str], "origin": Origin | None, "provenance": dict}


def read_concepts(
    path: str | PathLike[str],
    pool: Pool,
    modality: Modality = "image",
    encoder: str | None = None,
    shots: int | None = None,
    templates: Sequence[str] = TEMPLATES,
    seed: int = 0,
) -> Prototypes:
    """Return the prototypes that ``path`` describes, in the space of a pool whose vectors are of ``modality``.

    Args:
        path: A folder with one sub-folder of pictures a concept, a ``.txt`` file with one name a line, or a
            ``.safetensors`` file that :meth:`Prototypes.save` wrote.
        pool: What they will be compared with.
        modality: That of its vectors.
        encoder: What made its vectors, where it does not tell.
        shots: Pictures a concept, drawn at random by ``seed`` where there are more.
        templates: Prompts for names, each with ``{}``.
        seed: Of the draw.

    Raises:
        FileNotFoundError: If there is no such path.
        ValueError: If pictures meet texts or names images, the encoder is unknown, or an option does not apply.
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
    model = Space({modality: build_tower(modality, name, "pooled", 1)})
    if needed == "image":
        return Prototypes.from_images(model, path, shots, seed)
    names = dict.fromkeys(line.strip() for line in read_lines(path) if line.strip())
    return Prototypes.from_texts(model, names, templates)


def labelled_pictures(folder: str | PathLike[str]) -> dict[str, list[Path]]:
    """Return the pictures of each sub-folder under its name, sorted.

    Raises:
        ValueError: If no sub-folder holds a picture, or one holds none.
    """
    found = {
        path.name: sorted(path / name for name in find_pictures(path))
        for path in sorted(Path(folder).glob("*"))
        if path.is_dir()
    }
    empty = [name for name, pictures in found.items() if not pictures]
    if empty or not found:
        raise ValueError(f"{folder}: each concept needs a folder with pictures; {empty[:5] or 'there is none'}.")
    return found


def labelled_dataset(dataset: Any, image: str = "image", label: str = "label") -> dict[str, list[Any]]:
    """Return the images of a ``datasets`` data set, not decoded yet, under the names of their labels.

    Raises:
        ValueError: If a column is missing, or a row has no label.
    """
    from datasets import Image

    if missing := {image, label} - set(dataset.column_names):
        raise ValueError(f"the data set has no column {sorted(missing)}; its columns are {dataset.column_names}.")
    if isinstance(dataset.features[image], Image):
        dataset = dataset.cast_column(image, Image(decode=False))
    names = getattr(dataset.features[label], "names", None)
    found: dict[str, list[Any]] = {}
    for number, row in enumerate(dataset):
        if names is not None and row[label] not in range(len(names)):
            raise ValueError(
                f"row {number} of the data set has the label {row[label]}, which has no name; leave it out."
            )
        found.setdefault(str(row[label]) if names is None else names[row[label]], []).append(row[image])
    return found
