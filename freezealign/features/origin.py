"""Origin: what made frozen features, so that they are never taken for another encoder's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freezealign.encoders import FrozenEncoder


@dataclass(frozen=True)
class Origin:
    """The encoder of one modality's features.

    Args:
        name: What the user called the encoder.
        fingerprint: SHA-256 of its tensors.
        preprocessing: What it does to an input before the model sees it.
        pooling: How its tokens were pooled before they were stored; ``None`` where the tokens themselves are stored.
    """

    name: str
    fingerprint: str
    preprocessing: dict[str, Any]
    pooling: str | None = None

    @classmethod
    def of(cls, encoder: FrozenEncoder, pooling: str | None = None) -> Origin:
        """Return the origin of what ``encoder`` gives."""
        return cls(encoder.name, **encoder.identity, pooling=pooling)

    def check(self, modality: str, wanted: Origin) -> None:
        """Make sure that features of this origin can be used where ``wanted`` ones are expected.

        Raises:
            ValueError: If the encoder, its preprocessing or the pooling is another; the message names both.
        """
        for key, what in (("fingerprint", "encoder"), ("preprocessing", "preprocessing"), ("pooling", "pooling")):
            mine, other = getattr(self, key), getattr(wanted, key)
            if mine != other:
                raise ValueError(
                    f"these {modality} features were made by another encoder or in another way: their {what} is "
                    f"'{self.name}', {mine}; the model's is '{wanted.name}', {other}. "
                    "Extract them again with this model."
                )
