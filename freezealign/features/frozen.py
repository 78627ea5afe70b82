"""FrozenFeatures: what a frozen encoder gave for many items of one modality, as flat arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezealign.files import inside
from freezealign.modules.base import Features

PER_TOKEN = ("token_embeddings", "special_tokens_mask")
PER_ITEM = ("cls_token_embeddings", "grid")


class FrozenFeatures:
    """Frozen features of n items of one modality.

    They go wherever the items themselves go: ``model.encode(features)`` skips the encoder.

    Args:
        modality: The tower they belong to.
        fingerprint: The encoder that made them.
        arrays: ``token_embeddings`` (ΣT, D) of all items one after another, ``offsets`` (n + 1) into it, and where the
            encoder gives them ``cls_token_embeddings`` (n, D), ``grid`` (n, 2), ``special_tokens_mask`` (ΣT).
            NumPy, in memory or memory-mapped.
        rows: Which items this object shows, in order; all by default. The arrays are shared, never copied.
    """

    def __init__(
        self, modality: str, fingerprint: str, arrays: dict[str, np.ndarray], rows: np.ndarray | None = None
    ) -> None:
        self.modality, self.fingerprint, self.arrays = modality, fingerprint, arrays
        self.rows = np.arange(len(arrays["offsets"]) - 1) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> FrozenFeatures:
        """Return some of the items, sharing the arrays."""
        return FrozenFeatures(self.modality, self.fingerprint, self.arrays, self.rows[index])

    def load(self, index: Sequence[int] | np.ndarray) -> Features:
        """Return the features of some items as one batch on the CPU, padded to the longest of them."""
        rows = self.rows[np.asarray(index)]
        starts, ends = self.arrays["offsets"][rows], self.arrays["offsets"][rows + 1]
        longest = int((ends - starts).max())
        batch: Features = {}
        for key in PER_TOKEN:
            if key in self.arrays:
                batch[key] = torch.from_numpy(_pad(self.arrays[key], starts, ends, longest))
        batch["attention_mask"] = torch.from_numpy(np.arange(longest) < (ends - starts)[:, None]).long()
        if "cls_token_embeddings" in self.arrays:
            batch["cls_token_embeddings"] = torch.from_numpy(np.array(self.arrays["cls_token_embeddings"][rows]))
        if "grid" in self.arrays and len(grids := np.unique(self.arrays["grid"][rows], axis=0)) == 1:
            batch["grid"] = tuple(grids[0].tolist())
        return batch

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each item."""
        return self.arrays["offsets"][self.rows + 1] - self.arrays["offsets"][self.rows]

    def save(self, folder: Path) -> None:
        """Write the items shown, each array as ``folder/MODALITY.KEY.npy``."""
        for key, array in self._shown().items():
            np.save(folder / f"{self.modality}.{key}.npy", array)

    def _shown(self) -> dict[str, np.ndarray]:
        """Return the arrays of the items shown alone."""
        if np.array_equal(self.rows, np.arange(len(self.arrays["offsets"]) - 1)):
            return self.arrays
        starts, lengths = self.arrays["offsets"][self.rows], self.lengths()
        ends = np.cumsum(lengths)
        tokens = np.repeat(starts - ends + lengths, lengths) + np.arange(lengths.sum())
        shown = {"offsets": np.concatenate([[0], ends])}
        shown |= {key: self.arrays[key][tokens] for key in PER_TOKEN if key in self.arrays}
        return shown | {key: self.arrays[key][self.rows] for key in PER_ITEM if key in self.arrays}

    @classmethod
    def open(cls, folder: Path, modality: str, fingerprint: str, keys: Iterable[str]) -> FrozenFeatures:
        """Memory-map what :meth:`save` wrote."""
        return cls(modality, fingerprint, {key: open_array(folder, f"{modality}.{key}.npy") for key in keys})


def open_array(folder: Path, name: str) -> np.ndarray:
    """Memory-map ``folder/name``.

    Raises:
        ValueError: If it is missing, damaged, or outside ``folder``.
    """
    try:
        array: np.ndarray = np.load(inside(folder, name), mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{folder}: '{name}' cannot be read ({error}); extract the features again.") from error
    return array


def _pad(values: np.ndarray, starts: np.ndarray, ends: np.ndarray, longest: int) -> np.ndarray:
    padded = np.zeros((len(starts), longest, *values.shape[1:]), values.dtype)
    for row, (start, end) in enumerate(zip(starts, ends)):
        padded[row, : end - start] = values[start:end]
    return padded


class FrozenFeaturesBuilder:
    """Collect batches of an encoder's output into :class:`FrozenFeatures`."""

    def __init__(self, modality: str, fingerprint: str) -> None:
        self.modality, self.fingerprint = modality, fingerprint
        self.bytes = 0
        self._parts: dict[str, list[np.ndarray]] = {}
        self._lengths: list[int] = []

    def add(self, output: Features, keep: Sequence[int]) -> None:
        """Append the items ``keep`` of one batch; padding is taken off."""
        tokens = output["token_embeddings"]
        mask = output.get("attention_mask")
        valid = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask.bool().cpu()
        for row in keep:
            self._lengths.append(int(valid[row].sum()))
            for key in PER_TOKEN:
                self._append(key, output.get(key), row, valid[row])
            self._append("cls_token_embeddings", output.get("cls_token_embeddings"), row)
            if "grid" in output:
                self._parts.setdefault("grid", []).append(np.array([output["grid"]]))

    def build(self) -> FrozenFeatures:
        """Return everything added so far as one object."""
        arrays = {"offsets": np.concatenate([[0], np.cumsum(self._lengths)]).astype(np.int64)}
        for key in list(self._parts):
            arrays[key] = np.concatenate(self._parts.pop(key))
        return FrozenFeatures(self.modality, self.fingerprint, arrays)

    def _append(self, key: str, values: Tensor | None, row: int, valid: Tensor | None = None) -> None:
        if values is None:
            return
        item: Any = values[row].cpu()
        array = (item[valid] if valid is not None else item[None]).numpy().copy()
        self.bytes += array.nbytes
        self._parts.setdefault(key, []).append(array)
