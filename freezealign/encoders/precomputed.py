"""Backend ``precomputed``: vectors that were made elsewhere, by whatever made them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from freezealign.batch import Features
from freezealign.encoders.base import Encoder, EncoderReference
from freezealign.encoders.identity import digest
from freezealign.inputs import InputError

LARGEST_WIDTH = 10**6


class PrecomputedEncoder(Encoder):
    """Give vectors on as they are.

    Args:
        reference: ``source`` is their width D in digits; ``name`` tells vectors of one source from another's.

    Raises:
        ValueError: If the width is none of 1 to 1,000,000.
    """

    has_cls = False

    def __init__(self, reference: EncoderReference) -> None:
        super().__init__()
        if not re.fullmatch("[1-9][0-9]{0,6}", reference.source) or int(reference.source) > LARGEST_WIDTH:
            raise ValueError(f"vectors are 1 to {LARGEST_WIDTH:,} wide, not {reference.source:.80}.")
        self.modality, self.name, self.dim = reference.modality, reference.name, int(reference.source)

    @property
    def kind(self) -> str:
        """Items are vectors, whatever the modality."""
        return "vector"

    def read(self, item: Any) -> np.ndarray:
        """Return a vector (dim,) as float32; raise an ``InputError`` if it is none, of another width or not finite."""
        vector: np.ndarray = super().read(item)
        if len(vector) != self.dim:
            raise InputError(f"the {self.modality} vector is {len(vector)} wide, the model takes {self.dim}.")
        return vector

    def preprocess(self, items: list[Any]) -> Features:
        """Return the vectors (B, dim) as one tensor."""
        return {"vectors": torch.from_numpy(np.stack(items))}

    def forward(self, batch: Features) -> Features:
        """Return the vectors as ``sentence_embedding`` (B, dim)."""
        return {"sentence_embedding": batch["vectors"]}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The width: nothing is done to a vector."""
        return {"width": self.dim}

    def fingerprint(self) -> str:
        """Return a digest of the modality and of the name of what made the vectors."""
        return digest(["precomputed", self.modality, self.name])
