"""Small operations on embeddings, as pure functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def unit(vectors: Any) -> Tensor:
    """Return vectors (..., d), NumPy or torch, as float32 of length 1."""
    return functional.normalize(torch.as_tensor(vectors).float(), p=2, dim=-1)


def check_finite(vectors: Tensor) -> None:
    """Raise a ``ValueError`` that names the rows of ``vectors`` (n, d) that hold NaN or Inf."""
    bad = torch.nonzero(~torch.isfinite(vectors).all(-1)).flatten().tolist()
    if bad:
        raise ValueError(f"the embeddings of items {bad[:10]} are NaN or Inf: an encoder gave non-finite features.")


def quantize(vectors: Tensor, precision: str) -> Tensor:
    """Return vectors (n, d) in another precision, by sentence-transformers' own quantisation."""
    if precision == "float32":
        return vectors
    from sentence_transformers.util.quantization import quantize_embeddings

    return torch.from_numpy(np.asarray(quantize_embeddings(vectors.cpu().numpy(), precision=precision)))
