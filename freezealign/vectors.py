"""Small operations on embeddings, as pure functions."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def as_array(values: Any) -> np.ndarray:
    """Return a tensor or anything like an array as an array; one on the CPU is not copied, a mapped one stays mapped.

    A tensor of bfloat16, which NumPy does not have, becomes float32.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asanyarray(values)


def unit(vectors: Any) -> Tensor:
    """Return vectors (..., d), NumPy or torch, as float32 of length 1."""
    return functional.normalize(torch.as_tensor(vectors).float(), p=2, dim=-1)


def check_finite(items: Iterable[Tensor]) -> None:
    """Raise a ``ValueError`` that names the positions of the items that hold NaN or Inf."""
    bad = [position for position, item in enumerate(items) if not torch.isfinite(item).all()]
    if bad:
        raise ValueError(f"the embeddings of items {bad[:10]} are NaN or Inf: an encoder gave non-finite features.")


PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
FEW = 1000
"""Items whose own smallest and largest values say little of those to come."""


def check_quantization(precision: str | None, ranges: Any, count: int, width: int) -> None:
    """Make sure, before any work, that ``count`` vectors of a width can be quantised so.

    Raises:
        ValueError: If there is no such precision, ranges are of no use or of no use to it, or one item is to give them.
    """
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"unknown precision {precision!r}; choose one of {PRECISIONS}.")
    whole = precision in ("int8", "uint8")
    remedy = "pass ranges=np.stack([vectors.min(0), vectors.max(0)]) of float32 vectors of your corpus."
    if ranges is not None:
        found = np.asarray(ranges)
        if not whole:
            raise ValueError(f"ranges= are for precision 'int8' and 'uint8', not for {precision!r}; leave them out.")
        if found.shape != (2, width) or not np.isfinite(found).all() or (found[0] > found[1]).any():
            raise ValueError(f"ranges= are (2, {width}), the least and the largest value of each dimension: {remedy}")
    elif whole and count == 1:
        raise ValueError(f"precision={precision!r}: one item has no range of values; {remedy}")
    elif whole and 0 < count < FEW:
        warnings.warn(
            f"precision={precision!r} takes its ranges from these {count} items alone: an item gets other numbers "
            f"beside other items, and vectors of two calls cannot be compared; {remedy}",
            stacklevel=3,
        )


def quantize(vectors: Tensor, precision: str | None, ranges: Any = None) -> Tensor:
    """Return vectors (n, d) in another precision, by sentence-transformers' own quantisation.

    Args:
        vectors: Float32.
        precision: One of ``PRECISIONS``.
        ranges: (2, d) the least and the largest value of each dimension, for ``int8`` and ``uint8``; what lies beyond
            is cut. By default those of ``vectors``.
    """
    if precision in ("float32", None):
        return vectors
    from sentence_transformers.util.quantization import quantize_embeddings

    ranges = None if ranges is None else np.asarray(ranges, np.float32)
    return torch.from_numpy(np.asarray(quantize_embeddings(vectors.cpu().numpy(), precision, ranges)))
