"""Several frozen encoders of one modality as one: their features stand side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from freezealign.batch import Features
from freezealign.encoders.base import Encoder, EncoderReference
from freezealign.encoders.frozen import FrozenEncoder
from freezealign.encoders.identity import digest
from freezealign.files import inside, read_object
from freezealign.modules.pooling import Pooling
from freezealign.vectors import unit


def batch_of(batch: Features, number: int) -> Features:
    """Return what of a batch of several encoders is that of one of them."""
    prefix = f"{number}."
    return {key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)}


class SideBySide(Encoder):
    """The features of several frozen encoders, each vector centred and of length 1 before they are put side by side.

    Args:
        parts: The encoders.

    Attributes:
        has_grid: Whether it gives tokens, on a common grid, and a CLS vector; else one vector an item.

    Raises:
        ValueError: If their modalities differ.
    """

    parts: Sequence[FrozenEncoder]

    def __init__(self, parts: Sequence[FrozenEncoder]) -> None:
        super().__init__()
        kinds = {part.modality for part in parts}
        if len(kinds) != 1:
            told = ", ".join(f"{part.name} ({part.modality})" for part in parts) or "none"
            raise ValueError(f"encoders that stand side by side have one modality, got {told}.")
        if any(part.kind != part.modality for part in parts):
            raise ValueError("vectors that were made elsewhere stand side by side in their array: np.hstack([…]).")
        self.modality, self.dim = kinds.pop(), sum(part.get_embedding_dimension() for part in parts)
        self.parts = nn.ModuleList(parts)  # type: ignore[assignment]
        self.poolings = [Pooling(part.summary) for part in parts]
        self.has_grid = self.has_cls = self.modality == "image" and all(part.encoder.has_cls for part in parts)
        self.shares = [part.encoder.center_crop_share for part in parts]

    def preprocess(self, items: list[Any]) -> Features:
        """Return the batch of every encoder, its keys behind the encoder's number and a dot."""
        batches = [part.collate(items) for part in self.parts]
        return {f"{number}.{key}": value for number, batch in enumerate(batches) for key, value in batch.items()}

    def forward(self, batch: Features) -> Features:
        """Return ``cls_token_embeddings``, ``token_embeddings`` and ``grid``; or ``sentence_embedding`` alone.

        The vector of an item is that of every encoder, pooled by itself: CLS of an image, else the mean over tokens.
        Tokens are on the finest grid, of the part of the picture that all encoders see, by bilinear interpolation.
        """
        outputs = [part(batch_of(batch, number)) for number, part in enumerate(self.parts)]
        pooled = [pooling(output)["sentence_embedding"] for pooling, output in zip(self.poolings, outputs)]
        if not self.has_grid:
            return {"sentence_embedding": side_by_side(pooled)}
        finest = max((output["grid"] for output in outputs), key=lambda grid: grid[0] * grid[1])
        tokens = [
            resample(output["token_embeddings"], output["grid"], finest, self.center_crop_share / share)
            for output, share in zip(outputs, self.shares)
        ]
        vectors = {"cls_token_embeddings": side_by_side(pooled), "token_embeddings": side_by_side(tokens)}
        return {**vectors, "grid": finest}

    @property
    def center_crop_share(self) -> float:
        """The smallest of the encoders': what all of them see."""
        return min(self.shares)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """That of every encoder, in order."""
        found: dict[str, Any] = self._identity["preprocessing"]
        return found

    @property
    def configuration(self) -> str:
        """A digest of the encoders' own."""
        return str(self._identity["configuration"])

    def fingerprint(self) -> str:
        """Return a SHA-256 over the encoders' own, in order."""
        return str(self._identity["fingerprint"])

    @property
    def _identity(self) -> dict[str, Any]:
        return joint_identity([part.identity for part in self.parts])

    def num_parameters(self) -> int:
        """Return the sum of the encoders'."""
        return sum(part.num_parameters() for part in self.parts)


class JointEncoder(FrozenEncoder):
    """Several frozen encoders of one modality as the one encoder of a tower: their features stand side by side.

    ``{"image": ["efficientnet-lite0", "efficientnet-lite2"]}`` means the same. Each encoder reads an item in its own
    way and gives a vector: CLS of an image, else the mean over tokens. Vectors are centred and brought to length 1,
    so that neither width nor scale decides what an encoder counts, and concatenated; the cosine of two items is the
    mean of the encoders'. So are tokens of images, on the finest grid, of what all encoders see, by bilinear
    interpolation where grids or crops differ. Texts, and images where one encoder gives vectors only, have no common
    grid: there is one vector an item, for recipes that pool first.

    An English text encoder beside a multilingual one costs the other languages: docs/encoders.md has the numbers.

    Args:
        encoders: Names, as :class:`FrozenEncoder` takes them, or frozen encoders with options of their own.
        modality: Of all; needed for names that could be of several.

    Raises:
        ValueError: If there is no encoder, or their modalities differ; and as :class:`FrozenEncoder` raises.

    >>> JointEncoder(["efficientnet-lite0", "efficientnet-lite2"]).get_embedding_dimension()  # doctest: +SKIP
    2560
    """

    encoder: SideBySide

    def __init__(self, encoders: Sequence[str | FrozenEncoder], modality: str | None = None) -> None:
        loaded = [one if isinstance(one, FrozenEncoder) else FrozenEncoder(one, modality) for one in encoders]
        parts = [part for one in loaded for part in one.parts]
        super().__init__(SideBySide(parts))
        self.reference = EncoderReference("+".join(part.name for part in parts), "joint", self.modality, "")

    @property
    def parts(self) -> list[FrozenEncoder]:
        """The encoders, in order."""
        return list(self.encoder.parts)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the folders of the encoders, and what is told of them together, as JSON."""
        folders = [f"encoder_{number}" for number in range(len(self.parts))]
        told = {"name": self.name, "modality": self.modality, "encoders": folders}
        return {**told, **self.identity, "dim": self.encoder.dim}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the references of the encoders, a folder each, and ``config.json``."""
        super().save(output_path)
        for folder, part in zip(self.get_config_dict()["encoders"], self.parts):
            part.save(str(Path(output_path, folder)))

    @classmethod
    def from_folder(cls, folder: Path) -> JointEncoder:
        """Load the encoders a folder refers to, and check that they are those the model was trained with.

        Raises:
            ValueError: If the tensors, configuration or preprocessing of one differ from the saved ones.
        """
        schema = {"encoders": list[str], "fingerprint": str, "preprocessing": dict, "configuration": str}
        config = read_object(folder / cls.config_file_name, schema)
        encoder = cls([FrozenEncoder.from_folder(inside(folder, name)) for name in config["encoders"]])
        encoder.check_identity(config)
        return encoder


def joint_identity(identities: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the identity of several encoders side by side, from their own, in order."""
    return {
        "fingerprint": digest([one["fingerprint"] for one in identities]),
        "preprocessing": {f"encoder_{number}": one["preprocessing"] for number, one in enumerate(identities)},
        "configuration": digest([one["configuration"] for one in identities]),
    }


def side_by_side(vectors: Sequence[Tensor]) -> Tensor:
    """Return vectors (..., D_k) of several encoders, each centred and of length 1, as one (..., sum of D_k)."""
    normed = [functional.layer_norm(own.float(), own.shape[-1:]) for own in vectors]
    return torch.cat([unit(own) for own in normed], dim=-1)


def resample(tokens: Tensor, grid: tuple[int, int], target: tuple[int, int], share: float) -> Tensor:
    """Return tokens (B, rows · columns, D) of ``grid`` on the grid ``target``, by bilinear interpolation.

    Args:
        tokens: In row-major order.
        grid: Its rows and columns.
        target: Likewise.
        share: Of the grid's side that ``target`` covers, around its centre.
    """
    if grid == target and share == 1:
        return tokens
    maps = tokens.float().transpose(1, 2).unflatten(2, grid)
    theta = maps.new_tensor([[share, 0, 0], [0, share, 0]]).expand(len(maps), 2, 3)
    places = functional.affine_grid(theta, [len(maps), 1, *target], align_corners=False)
    found = functional.grid_sample(maps, places, mode="bilinear", padding_mode="border", align_corners=False)
    return found.flatten(2).transpose(1, 2)
