"""FrozenFeatures: what a frozen encoder gave for many items of one modality, and which encoder it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from freezealign.batch import Features
from freezealign.encoders import FrozenEncoder
from freezealign.encoders.engines import EXACT
from freezealign.encoders.identity import identity_differences
from freezealign.features.columns import Column, Runs, Strings

PER_TOKEN = ("token_embeddings", "special_tokens_mask")
EMBEDDINGS = ("token_embeddings", "cls_token_embeddings", "sentence_embedding")
SCALE = ".scale"
"""Suffix of the column that holds what int8 rows are multiplied by."""


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
        engines = dict.fromkeys(str(part.engine.choice or EXACT) for part in encoder.parts)
        return cls(encoder.name, **encoder.identity, pooling=pooling, engine=" + ".join(engines))

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


class FrozenFeatures:
    """Frozen features of n rows of one modality.

    They go wherever the items themselves go: ``model.encode(features)`` skips the encoder.

    Args:
        modality: The tower they belong to.
        origin: The encoder that made them.
        columns: At level ``tokens``: ``token_embeddings`` (ΣT, D) of all rows one after another, ``lengths`` (n,) in
            tokens, and where the encoder gives them ``cls_token_embeddings`` (n, D), ``grid`` (n, 2),
            ``special_tokens_mask`` (ΣT,). At level ``pooled``: ``sentence_embedding`` (n, D). Of a text also its
            ``captions.utf8`` and ``captions.lengths``.
        rows: Which rows this object shows, in order; all by default. The columns are shared, never copied.
    """

    def __init__(
        self, modality: str, origin: Origin, columns: Mapping[str, Column], rows: np.ndarray | None = None
    ) -> None:
        self.modality, self.origin, self.columns, self.rows = modality, origin, dict(columns), rows

    def __len__(self) -> int:
        own = self.columns["lengths" if "lengths" in self.columns else "sentence_embedding"]
        return len(own if self.rows is None else self.rows)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> FrozenFeatures:
        """Return some of the rows, sharing the columns."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return FrozenFeatures(self.modality, self.origin, self.columns, rows[index])

    @cached_property
    def tokens(self) -> Runs | None:
        """Which tokens belong to each row; ``None`` at level ``pooled``."""
        if "lengths" not in self.columns:
            return None
        return self.columns["lengths"].runs(len(self.columns["token_embeddings"]))

    @property
    def width(self) -> int:
        """Of its vectors or tokens."""
        key = "sentence_embedding" if self.tokens is None else "token_embeddings"
        return int(self.columns[key].parts[0].shape[1])

    def load(self, index: Sequence[int] | np.ndarray) -> Features:
        """Return the features of some rows as one batch on the CPU, padded to the longest of them.

        Embeddings come in the dtype they are stored in; those stored as int8 come as float32.
        """
        rows = self._at(index)
        if self.tokens is None:
            return {"sentence_embedding": torch.from_numpy(self._embeddings("sentence_embedding", rows))}
        lengths, positions = self.tokens.lengths(rows), self.tokens.rows(rows)
        mask = np.arange(int(lengths.max())) < lengths[:, None]
        batch: Features = {"attention_mask": torch.from_numpy(mask.astype(np.int64))}
        batch["token_embeddings"] = torch.from_numpy(_pad(self._embeddings("token_embeddings", positions), mask))
        if "special_tokens_mask" in self.columns:
            marks = self.columns["special_tokens_mask"].take(positions)
            batch["special_tokens_mask"] = torch.from_numpy(_pad(marks, mask))
        if "cls_token_embeddings" in self.columns:
            batch["cls_token_embeddings"] = torch.from_numpy(self._embeddings("cls_token_embeddings", rows))
        if "grid" in self.columns and len(grids := np.unique(self.columns["grid"].take(rows), axis=0)) == 1:
            batch["grid"] = tuple(grids[0].tolist())
        return batch

    def vectors(self) -> torch.Tensor:
        """Return the vectors (n, D) of all rows; there are none at level ``tokens``."""
        vectors: torch.Tensor = self.load(np.arange(len(self)))["sentence_embedding"]
        return vectors

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each row; 1 at level ``pooled``."""
        if self.tokens is None:
            return np.ones(len(self), np.int64)
        return self.tokens.lengths(self._at(np.arange(len(self))))

    @cached_property
    def texts(self) -> Strings | None:
        """The texts themselves, by row of the columns; ``None`` where these are not features of texts."""
        if "captions.utf8" not in self.columns:
            return None
        return Strings(self.columns["captions.utf8"], self.columns["captions.lengths"])

    def captions(self, index: Sequence[int] | np.ndarray) -> list[str]:
        """Return the texts of some rows.

        Raises:
            ValueError: If these are not features of texts.
        """
        if self.texts is None:
            raise ValueError(f"features of {self.modality} have no captions.")
        return self.texts.take(self._at(index))

    def arrays(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the columns of some rows, read into memory."""
        tokens = rows if self.tokens is None else self.tokens.rows(rows)
        letters = rows if self.texts is None else self.texts.runs.rows(rows)
        index = dict.fromkeys(PER_TOKEN, tokens) | {"captions.utf8": letters}
        return {key: column.take(index.get(key.removesuffix(SCALE), rows)) for key, column in self.columns.items()}

    def _at(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        index = np.asarray(index, np.int64)
        return index if self.rows is None else self.rows[index]

    def _embeddings(self, key: str, index: np.ndarray) -> np.ndarray:
        values = self.columns[key].take(index)
        if values.dtype != np.int8:
            return values
        return values * self.columns[key + SCALE].take(index)[:, None]


def _pad(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Lay rows (ΣT, …) out as (B, T, …), zeros where ``mask`` (B, T) is false."""
    if mask.all():
        return values.reshape(*mask.shape, *values.shape[1:])
    padded = np.zeros((*mask.shape, *values.shape[1:]), values.dtype)
    padded[mask] = values
    return padded
