"""What a training step gets, and what the trainer draws it from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from freezealign.batch import Features
from freezealign.inputs import Skipped


class TrainingBatch(NamedTuple):
    """What a training step gets.

    Args:
        inputs: For each modality what its tower takes, on the CPU.
        owners: For each modality (rows,) which pair of the data each row belongs to; ``None`` where no pair has more
            than one row in a modality.
        number: Its place in the epoch, from 0.
        size: Pairs in it.
    """

    inputs: dict[str, Features]
    owners: dict[str, Tensor] | None
    number: int
    size: int

    def pinned(self) -> TrainingBatch:
        """Return it in pinned memory, from where an accelerator copies while it computes."""
        inputs = {
            key: {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in features.items()}
            for key, features in self.inputs.items()
        }
        return self._replace(inputs=inputs)


class Batches(Protocol):
    """What the trainer draws from."""

    skipped: list[Skipped]
    num_pairs: int | None
    batch_size: int | None

    def __len__(self) -> int:
        """Return the steps of an epoch."""

    def digest(self) -> str | None:
        """Return what tells the data from other data; ``None`` where only its size is known."""

    def epoch(self, number: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Yield the batches of one epoch from number ``start`` on."""
