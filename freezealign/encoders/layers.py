"""Encoders made of the layers of another one: all of them at once, or one of them."""

from __future__ import annotations

from typing import Any

import torch

from freezealign.batch import Features, to_device
from freezealign.encoders.base import Encoder, tensor_of, with_tokens
from freezealign.modality import modality_of
from freezealign.modules.pooling import Pooling


class LayerEncoder(Encoder):
    """Base of the encoders that give layers of another one: inputs, weights and identity are the other's.

    Args:
        encoder: The other one; it is put in eval mode.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.eval()
        for name in ("modality", "commit", "tokenizer", "max_length"):
            setattr(self, name, getattr(encoder, name))

    @property
    def center_crop_share(self) -> float:
        """The wrapped encoder's."""
        return self.encoder.center_crop_share

    def preprocess(self, items: list[Any]) -> Features:
        """Return what the wrapped encoder takes."""
        return self.encoder.preprocess(items)

    @property
    def configuration(self) -> str:
        """The wrapped encoder's."""
        return self.encoder.configuration

    def fingerprint(self) -> str:
        """Return the wrapped encoder's: its layers are part of ``preprocessing``."""
        return self.encoder.fingerprint()

    def num_parameters(self) -> int:
        """Return the wrapped encoder's."""
        return self.encoder.num_parameters()


class AllLayers(LayerEncoder):
    """Every layer of an encoder, pooled to a vector and concatenated.

    Args:
        encoder: The encoder.
        pooling: What makes the features of a layer one vector, as :func:`freezealign.space.recipes.default_pooling`.

    Attributes:
        widths: The width of each layer's vector, first layer first; found by encoding one sample input.

    Raises:
        ValueError: If the modality is neither image nor text, or ``pooling`` needs what the encoder does not give.
    """

    has_cls = False

    def __init__(self, encoder: Encoder, pooling: Pooling) -> None:
        super().__init__(encoder)
        self.pooling = pooling
        self.widths = [int(pooling(features)["sentence_embedding"].shape[-1]) for features in probe_layers(encoder)]
        self.dim = sum(self.widths)

    def forward(self, batch: Features) -> Features:
        """Return ``sentence_embedding`` (B, sum of ``widths``), the layers' vectors, first layer first."""
        vectors = [self.pooling(features)["sentence_embedding"] for features in layers_of(self.encoder, batch)]
        return {"sentence_embedding": torch.cat(vectors, dim=-1)}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The wrapped encoder's, and how its layers are pooled."""
        return {**self.encoder.preprocessing, "layers": "all", "layer_pooling": self.pooling.mode}


class OneLayer(LayerEncoder):
    """The features of one layer of an encoder. The layers behind it are run all the same.

    Args:
        encoder: The encoder.
        layer: The layer, counted from 1, or from -1 at the end backwards.

    Attributes:
        layer: The layer, counted from 1.

    Raises:
        ValueError: If there is no such layer, or the modality is neither image nor text.
    """

    def __init__(self, encoder: Encoder, layer: int) -> None:
        super().__init__(encoder)
        layers = probe_layers(encoder)
        number, count = layer + len(layers) + 1 if layer < 0 else layer, len(layers)
        if not 1 <= number <= count:
            raise ValueError(f"layer={layer}: the encoder has {count} layers; choose 1 to {count}, or -1 to -{count}.")
        self.layer, self._index, self.has_cls = number, number - 1, encoder.has_cls
        self.dim = int(layers[self._index]["token_embeddings"].shape[-1])

    def forward(self, batch: Features) -> Features:
        """Return the layer's features; see :class:`Encoder`."""
        return layers_of(self.encoder, batch)[self._index]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The wrapped encoder's, and the layer."""
        return {**self.encoder.preprocessing, "layer": self.layer}


def layers_of(encoder: Encoder, batch: Features) -> list[Features]:
    """Return what :meth:`Encoder.forward_layers` gives, each with tokens, as :class:`FrozenEncoder` gives the last."""
    return [with_tokens(features) for features in encoder.forward_layers(batch)]


@torch.no_grad()
def probe_layers(encoder: Encoder) -> list[Features]:
    """Return the features of every layer for one sample input.

    Raises:
        ValueError: If there is no sample input of the encoder's modality.
    """
    probe = modality_of(encoder.kind).probe
    if probe is None:
        raise ValueError(f"the layers of encoders of {encoder.modality!r} cannot be counted: it has no sample input.")
    device = tensor_of(encoder).device
    return layers_of(encoder, to_device(encoder.preprocess([probe]), device))
