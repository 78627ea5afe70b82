"""Prototypes: one vector a concept, from a few labelled images or from its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from freezealign.curation.examples import draw, labelled_pictures
from freezealign.curation.pools import Pool
from freezealign.evaluation.prompts import ClassPrompts
from freezealign.features import FeatureStore, Level, Origin
from freezealign.files import write_arrays_atomically
from freezealign.vectors import unit

FILE_KEY = "freezealign_prototypes"
TEMPLATES = ("{}",)
NEARLY = 1e-3


class Extractor(Protocol):
    """What makes features of examples as those of the pool were made: a ``FreezeAlign``."""

    def extract_features(
        self, data: Iterable[Any], *, level: Level, modalities: Sequence[str], batch_size: int, show_progress_bar: bool
    ) -> FeatureStore:
        """Return the features of items."""


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
        if len(set(self.names)) < len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise ValueError(f"each concept has one name of its own; {twice[:5]} stand there more than once.")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_vectors(
        cls, vectors: Any, labels: Sequence[str], origin: Origin | None = None, **provenance: Any
    ) -> Prototypes:
        """Return the mean direction of the vectors of each label, in the order in which labels first appear.

        Args:
            vectors: (n, d), NumPy or torch; their lengths make no difference.
            labels: The concept of each.
            origin: The encoder that made them.
            **provenance: Whatever is worth knowing, as JSON.

        Raises:
            ValueError: If there is not one label a vector, or the vectors of a concept are not finite or cancel out.
        """
        vectors = unit(vectors)
        if len(labels) != len(vectors):
            raise ValueError(f"{len(vectors)} vectors have {len(labels)} labels; each needs one.")
        names = tuple(dict.fromkeys(labels))
        number = {name: index for index, name in enumerate(names)}
        owners = torch.tensor([number[label] for label in labels], dtype=torch.long)
        sums = torch.zeros(len(names), vectors.shape[1]).index_add_(0, owners, vectors)
        lengths = sums.norm(dim=1)
        if bad := [name for name, length in zip(names, lengths.tolist()) if not 0 < length < float("inf")]:
            raise ValueError(f"the examples of {bad[:5]} have no mean direction: they are zero, NaN, or cancel out.")
        counts = dict(zip(names, torch.bincount(owners, minlength=len(names)).tolist()))
        return cls(names, sums / lengths[:, None], origin, {"examples": counts, **provenance})

    @classmethod
    def from_images(
        cls,
        model: Extractor,
        images: Mapping[str, Sequence[Any]] | str | PathLike[str],
        shots: int | None = None,
        seed: int = 0,
        batch_size: int = 32,
        show_progress_bar: bool = True,
    ) -> Prototypes:
        """Return prototypes of labelled images, as the model's frozen image encoder sees them.

        Args:
            model: Its frozen encoder and pooling are those of a pool extracted at level ``pooled``.
            images: From concept to images, or a folder with one sub-folder of pictures a concept.
            shots: Images a concept, drawn at random where there are more; all by default.
            seed: Of that draw.
            batch_size: Images a forward pass.
            show_progress_bar: Show progress if it takes longer than a second.

        Raises:
            ValueError: If no image of a concept can be read.
        """
        labelled = images if isinstance(images, Mapping) else labelled_pictures(images)
        chosen = [(name, item) for name, items in labelled.items() for item in draw(items, shots, seed)]
        about = {"shots": shots, "seed": seed}
        return cls._from_items(model, "image", chosen, about, batch_size, show_progress_bar)

    @classmethod
    def from_texts(
        cls,
        model: Extractor,
        names: Iterable[str],
        templates: Sequence[str] = TEMPLATES,
        batch_size: int = 32,
        show_progress_bar: bool = True,
    ) -> Prototypes:
        """Return prototypes of class names in prompt templates, as the model's frozen text encoder reads them.

        Args:
            model: Its frozen encoder and pooling are those of a pool extracted at level ``pooled``.
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
        model: Extractor,
        modality: str,
        items: Sequence[tuple[str, Any]],
        about: Mapping[str, Any],
        batch_size: int,
        show_progress_bar: bool,
    ) -> Prototypes:
        if not items:
            raise ValueError("there are no examples to make prototypes of.")
        store = model.extract_features(
            [{modality: item, "id": str(position)} for position, (_, item) in enumerate(items)],
            modalities=[modality],
            level="pooled",
            show_progress_bar=show_progress_bar,
            batch_size=batch_size,
        )
        labels = [items[int(position)][0] for position in store.ids]
        if lost := sorted({name for name, _ in items} - set(labels)):
            raise ValueError(f"no example of {lost[:5]} can be read; the first: {store.skipped[0].reason}")
        skipped = [{"concept": items[entry.index][0], "reason": entry.reason} for entry in store.skipped]
        about = {"modality": modality, **about, "skipped": skipped}
        return cls.from_vectors(store[modality].vectors(), labels, store.origins[modality], **about)

    def check(self, pool: Pool) -> None:
        """Make sure that these can be compared with the vectors of a pool.

        Raises:
            ValueError: If the widths differ, or both encoders are known and are not the same.
        """
        if self.vectors.shape[1] != pool.width:
            raise ValueError(
                f"the prototypes are {self.vectors.shape[1]} wide, the vectors of {pool.name} {pool.width}; "
                "make the prototypes with the pool's own encoder."
            )
        if self.origin is not None and pool.origin is not None:
            pool.origin.check("pool", self.origin)

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
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: If the file is missing, damaged, or something else.
        """
        try:
            with safe_open(str(path), "pt") as file:
                about = json.loads((file.metadata() or {})[FILE_KEY])
                vectors = file.get_tensor("vectors")
            origin = None if about["origin"] is None else Origin(**about["origin"])
            return cls(tuple(about["names"]), vectors, origin, about["provenance"])
        except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} holds no prototypes that freezealign wrote ({error}).") from None
