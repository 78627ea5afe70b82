"""Origin: what made frozen features, so that they are never taken for another encoder's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from freezealign.encoders import FrozenEncoder
from freezealign.encoders.engines import EXACT
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
        engine: What ran it, and in which precision: ``openvino bfloat16``. Features of any engine are taken for the
            encoder's, as each agrees with torch in float32, but those of two are not put into one store.
    """

    name: str
    fingerprint: str
    preprocessing: dict[str, Any]
    pooling: str | None = None
    configuration: str = ""
    engine: str = str(EXACT)

    @classmethod
    def of(cls, encoder: FrozenEncoder, pooling: str | None = None) -> Origin:
        """Return the origin of what ``encoder`` gives."""
        engine = str(encoder.engine.choice or EXACT)
        return cls(encoder.name, **encoder.identity, pooling=pooling, engine=engine)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON; the engine only where it is another than stores of before were made by."""
        return {key: value for key, value in asdict(self).items() if key != "engine" or value != str(EXACT)}

    def check(self, modality: str, wanted: Origin) -> None:
        """Make sure that features of this origin can be used where ``wanted`` ones are expected.

        Raises:
            ValueError: If the encoder, its preprocessing or the pooling is another; the message names both.
        """
        ignored = ("name", "engine")
        mine, other = (
            {key: value for key, value in asdict(own).items() if key not in ignored} for own in (self, wanted)
        )
        for key, (before, now) in identity_differences(mine, other).items():
            what = "encoder" if key == "fingerprint" else key
            raise ValueError(
                f"these {modality} features were made by another encoder or in another way: their {what} is "
                f"'{self.name}', {before}; the model's is '{wanted.name}', {now}. Extract them again with this model."
            )
