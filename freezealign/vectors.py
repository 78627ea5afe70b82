"""Small operations on embeddings, as pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def unit(vectors: Any) -> Tensor:
    """Return vectors (..., d), NumPy or torch, as float32 of length 1."""
    return functional.normalize(torch.as_tensor(vectors).float(), p=2, dim=-1)


def check_finite(items: Iterable[Tensor]) -> None:
    """Raise a ``ValueError`` that names the positions of the items that hold NaN or Inf."""
    bad = [position for position, item in enumerate(items) if not torch.isfinite(item).all()]
    if bad:
        raise ValueError(f"the embeddings of items {bad[:10]} are NaN or Inf: an encoder gave non-finite features.")


def quantize(vectors: Tensor, precision: str | None) -> Tensor:
    """Return vectors (n, d) in another precision, by sentence-transformers' own quantisation."""
    if precision in ("float32", None):
        return vectors
    from sentence_transformers.util.quantization import quantize_embeddings

    return torch.from_numpy(np.asarray(quantize_embeddings(vectors.cpu().numpy(), precision=precision)))
