"""What a model makes of images and texts: all that evaluators ask of it, but for patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize


def embed(model: Any, modality: str, items: Any, **options: Any) -> Tensor:
    """Return the embeddings (n, d) of images or texts as float32, on whatever device they come.

    Args:
        model: Anything with ``encode_image`` and ``encode_text``.
        modality: ``image`` or ``text``.
        items: What that method takes.
        **options: Of that method.
    """
    encode = getattr(model, f"encode_{modality}")
    embeddings: Tensor = encode(items, convert_to_tensor=True, **options).float()
    return embeddings


def owners_mean(vectors: Tensor, owners: Tensor, count: int) -> Tensor:
    """Return for each of ``count`` owners the mean (count, d) of its vectors' directions.

    Args:
        vectors: (n, d) of any length.
        owners: (n,) whom each belongs to, from 0; all have one.
        count: The number of owners.
    """
    sums = vectors.new_zeros(count, vectors.shape[1])
    directions = normalize(vectors, dim=-1)
    return sums.index_add_(0, owners, directions) / torch.bincount(owners, minlength=count)[:, None]
