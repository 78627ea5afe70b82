"""Shards: the features of a run of pairs, as plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from freezealign.batch import Features
from freezealign.features.columns import as_bytes
from freezealign.features.frozen import EMBEDDINGS, PER_TOKEN, SCALE
from freezealign.inputs import Skipped

StoreDtype = Literal["float16", "float32", "int8"]
Level = Literal["tokens", "pooled"]
"""What of an item is stored: all that its encoder gives, or one vector."""
SHARD_SIZES: dict[Level, int] = {"tokens": 1024, "pooled": 8192}
"""Items a shard, which are lost together if a run is killed."""


@dataclass
class Shard:
    """The features of a run of pairs.

    Args:
        columns: ``MODALITY/KEY`` to the rows of that column (see :class:`FrozenFeatures`), and of the items
            ``items/MODALITY`` (how many rows each has) and ``items/ids.utf8``, ``items/ids.lengths``.
        skipped: The pairs that were left out.
        source: Digests of the pairs it was made of, left out or not (see :mod:`freezealign.data.digest`); empty where
            nobody knows them.
    """

    columns: dict[str, np.ndarray]
    skipped: list[Skipped] = field(default_factory=list)
    source: str = ""


class ShardBuilder:
    """Collect batches of encoder outputs into a :class:`Shard`.

    Args:
        dtype: What embeddings are stored as. ``int8`` rows are multiplied by a scale of their own when read.
    """

    def __init__(self, dtype: StoreDtype) -> None:
        self.dtype = dtype
        self.skipped: list[Skipped] = []
        self.source = ""
        self._parts: dict[str, list[np.ndarray]] = {}
        self._ids: list[str] = []
        self._texts: dict[str, list[str]] = {}

    def add_features(self, modality: str, output: Features, keep: np.ndarray) -> None:
        """Append rows ``keep`` of one batch; padding is taken off."""
        if "token_embeddings" not in output:
            self._append(modality, "sentence_embedding", output["sentence_embedding"][keep])
            return
        tokens, mask = output["token_embeddings"], output.get("attention_mask")
        valid = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask.bool().cpu()
        self._append(modality, "lengths", valid[keep].sum(1).int())
        for key in (*PER_TOKEN, "cls_token_embeddings"):
            if output.get(key) is not None:
                values = output[key][keep]
                self._append(modality, key, values[valid[keep].to(values.device)] if key in PER_TOKEN else values)
        if "grid" in output:
            self._append(modality, "grid", torch.tensor(output["grid"], dtype=torch.int16).repeat(len(keep), 1))

    def add_items(self, ids: Sequence[str], rows: Mapping[str, Sequence[int]], texts: Mapping[str, list[str]]) -> None:
        """Append items: their ids, how many rows each has in each modality, and their captions."""
        self._ids += ids
        for modality, counts in rows.items():
            self._append("items", modality, torch.tensor(counts, dtype=torch.int32))
        for modality, captions in texts.items():
            self._texts.setdefault(modality, []).extend(captions)

    @property
    def nbytes(self) -> int:
        """Bytes of everything added so far, but for ids and captions."""
        return sum(rows.nbytes for parts in self._parts.values() for rows in parts)

    def build(self) -> Shard:
        """Return everything added so far."""
        columns = {key: np.concatenate(self._parts.pop(key)) for key in list(self._parts)}
        if self._ids:
            columns["items/ids.utf8"], columns["items/ids.lengths"] = as_bytes(self._ids)
        for modality, texts in self._texts.items():
            columns[f"{modality}/captions.utf8"], columns[f"{modality}/captions.lengths"] = as_bytes(texts)
        return Shard(columns, self.skipped, self.source)

    def _append(self, modality: str, key: str, values: Tensor) -> None:
        columns = {key: values.cpu().numpy()} if key not in EMBEDDINGS else {}
        if key in EMBEDDINGS:
            columns[key], scale = quantized(values.float().cpu().numpy(), self.dtype)
            columns |= {} if scale is None else {f"{key}{SCALE}": scale}
        for name, rows in columns.items():
            self._parts.setdefault(f"{modality}/{name}", []).append(rows)


def quantized(rows: np.ndarray, dtype: StoreDtype) -> tuple[np.ndarray, np.ndarray | None]:
    """Return float32 rows (n, D) as ``dtype``, and for int8 the scale (n,) float32 of each row.

    Raises:
        ValueError: If a value is beyond float16.
    """
    if dtype == "int8":
        scale = np.abs(rows).max(1, initial=0).astype(np.float32) / 127
        safe = np.where(scale > 0, scale, 1)
        return np.rint(rows / safe[:, None]).astype(np.int8), scale
    if dtype == "float16" and (largest := np.abs(rows).max(initial=0)) > np.finfo(np.float16).max:
        raise ValueError(f"the features reach {largest:.3g}, beyond float16; extract them with dtype='float32'.")
    return rows.astype(dtype), None
