"""Vectors of n items, read a slice at a time: arrays in memory, memory-mapped ones, and feature stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezealign.features import FeatureStore
from freezealign.modality import modality_of
from freezealign.modules import Pooling
from freezealign.moments import moderate

CHUNK = 4096
"""Items read at once."""


class Vectors:
    """The vectors of n items, one row each.

    Args:
        vectors: (n, d), NumPy or torch, of any real dtype; also memory-mapped.
        name: What errors call them.

    Raises:
        ValueError: If they are not (n, d), or no real numbers.
    """

    def __init__(self, vectors: Any, name: str = "x") -> None:
        if not hasattr(vectors, "shape"):
            vectors = np.asarray(vectors)
        if len(vectors.shape) != 2 or not vectors.shape[1]:
            raise ValueError(f"{name} must be vectors (n, d), one row an item, got the shape {tuple(vectors.shape)}.")
        if getattr(vectors.dtype, "kind", "c" if getattr(vectors.dtype, "is_complex", False) else "f") not in "biuf":
            raise ValueError(f"{name} must hold real numbers, got {vectors.dtype}.")
        self.vectors, self.name = vectors, name

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, index: np.ndarray) -> Tensor:
        """Return those of some items as float32, or float64 where they are.

        Raises:
            ValueError: If some hold NaN or infinity; the message gives their positions, ten at most.
        """
        index = np.asarray(index)
        loaded = self._load(index)
        if isinstance(loaded, np.ndarray) and (not loaded.flags.writeable or min(loaded.strides) < 0):
            loaded = loaded.copy()  # torch shares neither read-only nor reversed memory
        vectors = torch.as_tensor(loaded).detach()
        if vectors.dtype != torch.float64:
            vectors = vectors.float()
        if bad := index[~torch.isfinite(vectors).all(1).cpu().numpy()].tolist():
            raise ValueError(f"{self.name}: NaN or infinity in {len(bad)} items, the first {bad[:10]}.")
        return vectors

    def all(self) -> Tensor:
        """Return those of every item, on a scale that can be squared; see :func:`balanced`."""
        return balanced(self.take(np.arange(len(self))))

    def chunks(self) -> Iterator[Tensor]:
        """Yield all in order, ``CHUNK`` at once."""
        for start in range(0, len(self), CHUNK):
            yield self.take(np.arange(start, min(start + CHUNK, len(self))))

    def _load(self, index: np.ndarray) -> Any:
        neighbours = len(index) > 0 and index[-1] - index[0] == len(index) - 1 and (np.diff(index) == 1).all()
        return self.vectors[index[0] : index[-1] + 1] if neighbours else self.vectors[index]


class StoreVectors(Vectors):
    """One vector an item of a feature store: the mean over the item's rows, so that several captions count as one.

    Tokens are pooled as :func:`~freezealign.space.recipes.default_pooling` does: CLS where there is one, or the mean.

    Args:
        store: The store.
        modality: Which of its features.
        items: Which of its items, in order.
        columns: Which dimensions; all by default.
        name: What errors call the encoder; by default what the store calls it.
    """

    def __init__(
        self, store: FeatureStore, modality: str, items: np.ndarray, columns: slice = slice(None), name: str = ""
    ) -> None:
        self.features, self.modality, self.columns = store.select(items), modality, columns
        self.name = f"the {modality} features of '{name or store.origins[modality].name}'"

    def __len__(self) -> int:
        return len(self.features)

    def _load(self, index: np.ndarray) -> Any:
        items = self.features.select(index)
        rows, counts = items[self.modality], torch.from_numpy(items.counts(self.modality))
        batch = rows.load(np.arange(len(rows)))
        if rows.tokens is not None:
            has_cls = modality_of(self.modality).cls and "cls_token_embeddings" in batch
            batch = Pooling("cls" if has_cls else "mean")(batch)
        vectors = batch["sentence_embedding"][:, self.columns]
        if (counts == 1).all():
            return vectors
        owners = torch.arange(len(index)).repeat_interleave(counts)
        sums = torch.zeros(len(index), vectors.shape[1]).index_add_(0, owners, vectors.float())
        return sums / counts[:, None]


def balanced(x: Tensor) -> Tensor:
    """Return vectors divided by a power of two, without rounding, where their squares would leave float32."""
    if moderate(x):
        return x
    numbers = x.cpu().numpy()
    return torch.from_numpy(np.ldexp(numbers, -np.frexp(np.abs(numbers).max())[1])).to(x.device)


def unit_rows(x: Tensor) -> Tensor:
    """Return rows of length 1, however large or small they were; those of zeros stay zeros."""
    x = x / torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return x.div_(x.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny))


def check_spaces(spaces: Sequence[Vectors], least: int) -> None:
    """Raise a ``ValueError`` if a space has fewer items than ``least``, or equal vectors only."""
    for space in spaces:
        if len(space) < least:
            raise ValueError(f"at least {least} items are needed, got {len(space)}.")
        first = space.take(np.arange(1))
        if all((chunk == first).all() for chunk in space.chunks()):
            raise ValueError(f"{space.name} is constant: all its {len(space):,} vectors are equal.")


def check_counts(x: Vectors, y: Vectors) -> None:
    """Raise a ``ValueError`` if two spaces have different numbers of items."""
    if len(x) != len(y):
        raise ValueError(f"{x.name} has {len(x):,} items and {y.name} has {len(y):,}: row i of both must be one item.")
