"""Origin: what made frozen features, so that they are never taken for another encoder's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from freezealign.encoders import FrozenEncoder
from freezealign.encoders.identity import identity_differences


@dataclass(frozen=True)
class Origin:
    """The encoder of one modality's features.

    Args:
        name: What the user called the encoder.
        fingerprint: SHA-256 of its tensors.
        preprocessing: What it does to an input before the model sees it.
        pooling: How its tokens were pooled before they were stored; ``None`` where the tokens themselves are stored.
        configuration: Digest of all else it depends on; empty where that is not known.
    """

    name: str
    fingerprint: str
    preprocessing: dict[str, Any]
    pooling: str | None = None
    configuration: str = ""

    @classmethod
    def of(cls, encoder: FrozenEncoder, pooling: str | None = None) -> Origin:
        """Return the origin of what ``encoder`` gives."""
        return cls(encoder.name, **encoder.identity, pooling=pooling)

    def check(self, modality: str, wanted: Origin) -> None:
        """Make sure that features of this origin can be used where ``wanted`` ones are expected.

        Raises:
            ValueError: If the encoder, its preprocessing or the pooling is another; the message names both.
        """
        mine, other = ({key: value for key, value in asdict(own).items() if key != "name"} for own in (self, wanted))
        for key, (before, now) in identity_differences(mine, other).items():
            what = "encoder" if key == "fingerprint" else key
            raise ValueError(
                f"these {modality} features were made by another encoder or in another way: their {what} is "
                f"'{self.name}', {before}; the model's is '{wanted.name}', {now}. Extract them again with this model."
            )
