"""What an encoder is to this library: a way to read a batch, and frozen features for it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import chain
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from freezealign.batch import Features
from freezealign.encoders.identity import config_digest
from freezealign.files import tensor_digest
from freezealign.modality import read_item, unwrap

LIMITS = {"image_size": 10_000, "max_length": 2**24}
"""Pixels a side and tokens a text that an encoder may be asked to read."""


@dataclass(frozen=True)
class EncoderReference:
    """Where an encoder comes from: all that a saved model keeps of it, besides its fingerprint.

    Args:
        name: What the user asked for: a short name of the registry, a hub id, or a folder.
        backend: ``transformers``, ``timm``, ``sentence_transformers``, ``callable`` or ``precomputed``.
        modality: ``image``, ``text``, or any other name of a tower.
        source: What the backend loads: a hub id, a folder, or an architecture whose weights a ``package`` holds;
            of precomputed vectors their width.
        package: Key into :data:`freezealign.encoders.packaged.PACKAGES`, for weights from the Python package index;
            those in parts come from the hub where they are not installed.
        revision: Commit of the hub repository; ``None`` is its main branch.
        image_size: Pixels a side, instead of the encoder's own.
        max_length: Tokens a text, instead of the encoder's own.
        layer: The layer whose features are given, counted from 1; ``None`` is the last.

    Raises:
        ValueError: If a value is of another type, or a size that nothing has.
    """

    name: str
    backend: str
    modality: str
    source: str
    package: str | None = None
    revision: str | None = None
    image_size: int | None = None
    max_length: int | None = None
    layer: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), Integral if "int" in str(field.type) else str
            if (not isinstance(value, kind) or isinstance(value, bool)) and not (
                value is None and "None" in str(field.type)
            ):
                raise ValueError(f"{field.name}={value!r:.80}: the reference of an encoder has {field.type} there.")
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= limit:
                raise ValueError(f"{name}={value}: choose 1 to {limit:,}.")


class Encoder(nn.Module):
    """Base of the backends. It is wrapped, frozen and saved by reference by a ``FrozenEncoder``.

    Attributes:
        modality: Which tower it belongs to.
        dim: Width of what it gives.
        has_cls: Whether it gives ``cls_token_embeddings``.
        commit: Commit of the hub repository it came from, where there is one.
        tokenizer: A Hugging Face tokenizer, where texts are cut into tokens by one.
        max_length: Tokens a text before it is cut; ``None`` where there is no limit, or no tokens.
        layer: The layer it gives, counted from 1, where it is one of another encoder's.
    """

    modality: str
    dim: int
    has_cls: bool = True
    commit: str | None = None
    tokenizer: Any = None
    max_length: int | None = None
    layer: int | None = None

    @property
    def kind(self) -> str:
        """The modality by which its items are recognised and read: that of the tower, unless they are vectors."""
        return self.modality

    def read(self, item: Any) -> Any:
        """Return one item as :meth:`preprocess` takes it.

        Raises:
            InputError: If it cannot be read; the message names it.
        """
        return read_item(unwrap(item, self.modality), self.kind)

    def preprocess(self, items: list[Any]) -> Features:
        """Turn items already read (RGB PIL images, strings) into one batch of tensors on the CPU."""
        raise NotImplementedError

    def graph_inputs(self, batch: Features) -> dict[str, Tensor]:
        """Return what of a batch the tensor graph reads, by name."""
        raise NotImplementedError

    def graph(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what the model gives, by name: the part that other engines than torch can run.

        Whatever is not tensors, or not of the model, is left to :meth:`finish`: masks, special tokens, grids.
        """
        raise NotImplementedError

    def finish(self, outputs: dict[str, Tensor], batch: Features) -> Features:
        """Return frozen features out of what the graph gave for a batch."""
        raise NotImplementedError

    @property
    def has_graph(self) -> bool:
        """Whether it is split into a graph and the rest, so that other engines than torch can run it."""
        return type(self).graph is not Encoder.graph and type(self).forward is Encoder.forward

    def forward(self, batch: Features) -> Features:
        """Return frozen features of a batch, in torch.

        At least one of ``token_embeddings`` (B, T, dim) and ``sentence_embedding`` (B, dim). For images,
        ``token_embeddings`` are patches only, in row-major order of ``grid`` = (rows, columns), and
        ``cls_token_embeddings`` (B, dim) is the encoder's own summary of the image.
        For texts, ``attention_mask`` and ``special_tokens_mask`` (B, T).
        """
        return self.finish(self.graph(self.graph_inputs(batch)), batch)

    def forward_layers(self, batch: Features) -> list[Features]:
        """Return frozen features of a batch after every block, the first block first.

        Each entry has the form that :meth:`forward` gives, in a width of its own (B, T, D_k); the last one is what
        :meth:`forward` gives. Those before it come straight from the block: what follows the last block, such as a
        final norm or the pooling of sentence-transformers, is not applied to them. An encoder whose inside is not
        known, such as a function, has one layer.
        """
        return [self.forward(batch)]

    def classifier(self) -> tuple[Tensor, list[str]] | None:
        """Return the weights (C, dim) that tell the encoder's classes apart, and their names, if it has any."""
        return None

    @property
    def center_crop_share(self) -> float:
        """The share of a square picture's side that preprocessing keeps: less than 1 where it cuts out the centre."""
        return 1.0

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to an input before the model sees it, as JSON: part of the encoder's identity."""
        raise NotImplementedError

    @property
    def configuration(self) -> str:
        """A digest of all else that what it gives depends on, such as activations and heads; empty where unknown."""
        return config_digest(getattr(self, "model", None))

    def fingerprint(self) -> str:
        """Return a SHA-256 over every tensor of the encoder."""
        return tensor_digest(self.state_dict())

    def num_parameters(self) -> int:
        """Return the number of the encoder's parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


class VisionEncoder(Encoder):
    """Base of the backends for pictures, whose ``model`` takes ``pixel_values`` (B, 3, H, W)."""

    model: Any

    def graph_inputs(self, batch: Features) -> dict[str, Tensor]:
        """Return the pixels."""
        return {"pixel_values": batch["pixel_values"]}

    def _pixels(self, batch: Features) -> Tensor:
        """Return them in the precision of the model's weights."""
        pixels: Tensor = batch["pixel_values"].to(next(self.model.parameters()).dtype)
        return pixels


def tensor_of(encoder: Encoder) -> Tensor:
    """Return a tensor of an encoder, where it has any: it tells its device and precision."""
    return next(chain(encoder.parameters(), encoder.buffers()), torch.empty(0))


def with_tokens(features: Features) -> Features:
    """Add ``token_embeddings`` (B, 1, D) where there is only one vector an item, as that item's one token."""
    if "token_embeddings" in features:
        return features
    return {**features, "token_embeddings": features["sentence_embedding"].unsqueeze(1)}


def split_tokens(
    tokens: Tensor, grid: tuple[int, int], pooled: Tensor | None = None, has_cls: bool | None = None
) -> Features:
    """Separate patches from the tokens in front of them.

    Args:
        tokens: (B, P + rows · columns, D): P prefix tokens, CLS first, then registers or a distillation token.
        grid: (rows, columns) of the patches.
        pooled: (B, D), the model's own pooled output, the summary where there is no CLS; by default the patch mean.
        has_cls: Whether the first prefix token is CLS; by default, if there is any.

    Returns:
        ``token_embeddings`` (B, rows · columns, D), patches only; ``cls_token_embeddings`` (B, D); ``grid``.

    Raises:
        ValueError: If there are fewer tokens than the grid has cells.
    """
    prefix = tokens.shape[1] - grid[0] * grid[1]
    if prefix < 0:
        raise ValueError(f"{tokens.shape[1]} tokens do not fill a grid of {grid[0]} x {grid[1]} patches.")
    patches = tokens[:, prefix:]
    if prefix > 0 if has_cls is None else has_cls:
        summary = tokens[:, 0]
    else:
        summary = patches.mean(1) if pooled is None else pooled.flatten(1)
    return {"token_embeddings": patches, "cls_token_embeddings": summary, "grid": grid}


def flatten_map(feature_map: Tensor, pooled: Tensor | None = None) -> Features:
    """Read a feature map (B, D, rows, columns) as a grid of tokens; the summary defaults to the global average."""
    rows, columns = feature_map.shape[-2:]
    return split_tokens(feature_map.flatten(2).transpose(1, 2), (rows, columns), pooled)
