"""Vectors that somebody has already, as the columns of a feature store: nothing of their size is copied."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from freezealign.encoders import FrozenEncoder
from freezealign.features.columns import Column, NpyFile, as_bytes
from freezealign.features.frozen import Origin
from freezealign.inputs import InputError, Skipped
from freezealign.vectors import as_array

logger = logging.getLogger(__name__)

CHUNK_BYTES = 16 * 2**20
"""Vectors that are looked at together."""
CHUNK_TEXTS = 2**16
FLOATS = ("f2", "f4", "f8")


class Rows(NamedTuple):
    """The vectors of n items of one modality.

    Args:
        column: (N, D), all rows of an item one after another.
        counts: (n,) rows of each item.
    """

    column: Column
    counts: np.ndarray


class StoreParts(NamedTuple):
    """What :class:`~freezealign.FeatureStore` is made of."""

    origins: dict[str, Origin]
    columns: dict[str, Column]
    skipped: list[Skipped]
    items: np.ndarray | None


def array_parts(
    arrays: Mapping[str, Any],
    ids: Sequence[Any] | None,
    captions: Sequence[str | Sequence[str]] | None,
    encoders: Mapping[str, FrozenEncoder] | None,
    strict: bool,
) -> StoreParts:
    """Do what :meth:`freezealign.FeatureStore.from_arrays` says."""
    if not isinstance(arrays, Mapping) or not arrays:
        raise ValueError("name the arrays: {'image': X, 'text': Y}, one or more, by modality.")
    rows = {modality: rows_of(vectors, modality) for modality, vectors in arrays.items()}
    counts = {modality: len(own.counts) for modality, own in rows.items()}
    if len(set(counts.values())) > 1:
        named = ", ".join(f"{modality} {count:,}" for modality, count in counts.items())
        raise ValueError(f"row i of all arrays must be one item, but they have different numbers of items: {named}.")
    n = next(iter(counts.values()))
    columns: dict[str, Column] = {}
    for modality, (column, own) in rows.items():
        columns |= {f"{modality}/sentence_embedding": column, f"items/{modality}": Column([own.astype(np.int32)])}
    if ids is not None and len(ids) != n:
        raise ValueError(f"there are {len(ids):,} ids for {n:,} items.")
    columns |= _strings("items/ids", map(str, range(n) if ids is None else ids))
    if captions is not None:
        columns |= _strings("text/captions", _captions(captions, rows))
    faults = _faults(rows)
    if faults and strict:
        position = min(faults)
        raise InputError(f"item {position}: {faults[position]}")
    if len(faults) == n:
        reason = f"item 0: {faults[0]}" if n else "the arrays are empty."
        raise ValueError(f"there is no item that can be used; {reason}")
    skipped = [Skipped(position, faults[position]) for position in sorted(faults)]
    if skipped:
        logger.warning(
            "skipped %d of %d items; the first is %d: %s", len(faults), n, skipped[0].index, skipped[0].reason
        )
    items = np.setdiff1d(np.arange(n), list(faults)) if faults else None
    return StoreParts(_origins(rows, encoders or {}), columns, skipped, items)


def rows_of(vectors: Any, modality: str) -> Rows:
    """Return vectors in any of the forms that :meth:`freezealign.FeatureStore.from_arrays` takes, read as they are.

    Raises:
        ValueError: If they are of another form or dtype; the message names the remedy.
    """
    if isinstance(vectors, (str, PathLike)):
        vectors = [vectors]
    parts: list[np.ndarray | NpyFile]
    counts = None
    if isinstance(vectors, (list, tuple)) and vectors and isinstance(vectors[0], (str, PathLike)):
        files = [_npy_file(Path(path)) for path in vectors]
        parts = [files[0].map()] if len(files) == 1 and len(files[0].shape) == 3 else [*files]
    elif isinstance(vectors, (list, tuple)) and vectors:
        each = [as_array(rows) for rows in vectors]
        for place, one in enumerate(each):
            if one.ndim not in (1, 2) or one.shape[-1] != each[0].shape[-1]:
                raise ValueError(
                    f"the {modality} vectors of item {place} have the shape {one.shape}; in a list each item has a "
                    f"vector (D,) or several (k, D), all of the width of the first: {each[0].shape}."
                )
        parts, counts = [np.concatenate(list(map(np.atleast_2d, each)))], np.array([one[..., 0].size for one in each])
    else:
        parts = [as_array(vectors)]
    if len(parts) == 1 and isinstance(first := parts[0], np.ndarray) and first.ndim == 3:
        counts, parts = np.full(len(first), first.shape[1]), [first.reshape(-1, first.shape[2])]
    for part in parts:
        _check(part, parts[0], modality)
    column = Column(parts)
    return Rows(column, np.ones(len(column), np.int32) if counts is None else counts)


def _npy_file(path: Path) -> NpyFile:
    try:
        return NpyFile(path)
    except ValueError as error:
        reason = error.__cause__ or "its rows do not lie one after another"
        raise ValueError(
            f"{path} holds no vectors that can be read ({reason}); write them with numpy.save(path, "
            "numpy.ascontiguousarray(X))."
        ) from None


def _check(part: np.ndarray | NpyFile, first: np.ndarray | NpyFile, modality: str) -> None:
    """Raise a ``ValueError`` unless a part is (N, D), of floats, and like the first."""
    what = f"the {modality} vectors{f' in {part.path}' if isinstance(part, NpyFile) else ''}"
    if len(part.shape) != 2 or not part.shape[1]:
        raise ValueError(
            f"{what} have the shape {part.shape}: vectors are (n, D), or (n, k, D) where each item has k of them."
        )
    if part.dtype.str[1:] not in FLOATS or not part.dtype.isnative:
        scales = " times the scale that each row was quantised by" if part.dtype.kind in "iu" else ""
        raise ValueError(
            f"{what} are {part.dtype.name}, and float16, float32 or float64 are read: X.astype('float32'){scales}."
        )
    if (part.shape[1], part.dtype) != (first.shape[1], first.dtype):
        shapes = f"{part.shape[1]} wide, {part.dtype.name}; the first of them {first.shape[1]} wide, {first.dtype.name}"
        raise ValueError(f"{what} are {shapes}. All have one width and dtype.")


def _faults(rows: Mapping[str, Rows]) -> dict[int, str]:
    """Return the items that cannot be used, by position, and why."""
    faults: dict[int, str] = {}
    for modality, (column, counts) in rows.items():
        ends = np.cumsum(counts, dtype=np.int64)
        for position in np.flatnonzero(counts == 0).tolist():
            faults.setdefault(position, f"there is no {modality}.")
        for row in _not_finite(column):
            faults.setdefault(
                int(np.searchsorted(ends, row, side="right")),
                f"the {modality} vector holds NaN, infinity or a number beyond float32.",
            )
    return faults


def _not_finite(column: Column) -> Iterator[int]:
    step = max(1, CHUNK_BYTES * len(column) // max(1, column.nbytes))
    for start in range(0, len(column), step):
        rows = column.take(np.arange(start, min(start + step, len(column))))
        with np.errstate(over="ignore"):
            finite = np.isfinite(rows if rows.itemsize <= 4 else rows.astype(np.float32)).all(1)
        yield from (start + np.flatnonzero(~finite)).tolist()


def _origins(rows: Mapping[str, Rows], encoders: Mapping[str, FrozenEncoder]) -> dict[str, Origin]:
    if unknown := sorted(set(encoders) - set(rows)):
        raise ValueError(f"encoders= names {unknown}, but the arrays are {list(rows)}.")
    origins = {}
    for modality, (column, _) in rows.items():
        width = column.parts[0].shape[1]
        encoder = encoders.get(modality) or FrozenEncoder.precomputed(width, modality)
        if encoder.get_embedding_dimension() != width:
            raise ValueError(
                f"the {modality} vectors are {width} wide, and those of {encoder!r} "
                f"{encoder.get_embedding_dimension()}: name the encoder that made them."
            )
        origins[modality] = Origin.of(encoder, encoder.summary)
    return origins


def _captions(captions: Sequence[str | Sequence[str]], rows: Mapping[str, Rows]) -> Iterator[str]:
    """Yield the text of each row of the modality ``text``."""
    if "text" not in rows:
        raise ValueError(f"captions= are what was made the vectors of 'text' of, and the arrays are {list(rows)}.")
    counts = rows["text"].counts
    if len(captions) != len(counts):
        raise ValueError(f"there are captions of {len(captions):,} items for {len(counts):,}.")
    lists = [[own] if isinstance(own, str) else list(own or ()) for own in captions]
    for position, (own, count) in enumerate(zip(lists, counts)):
        if len(own) != count or not all(isinstance(text, str) for text in own):
            raise ValueError(f"item {position} has {count} text vectors, and as captions {own!r:.80}.")
    return chain.from_iterable(lists)


def _strings(name: str, texts: Iterator[str]) -> dict[str, Column]:
    """Return texts as the columns of :class:`~freezealign.features.columns.Strings`."""
    parts = [as_bytes(list(islice(texts, CHUNK_TEXTS)))]
    while part := list(islice(texts, CHUNK_TEXTS)):
        parts.append(as_bytes(part))
    utf8, lengths = zip(*parts)
    return {f"{name}.utf8": Column(utf8), f"{name}.lengths": Column(lengths)}
