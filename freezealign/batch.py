"""Features: what flows between blocks, and where it is."""

from __future__ import annotations

from typing import Any

import torch

Features = dict[str, Any]
"""One batch. Keys and shapes:

``pixel_values`` (B, 3, H, W), ``input_ids`` and ``attention_mask`` (B, T), ``special_tokens_mask`` (B, T),
``token_embeddings`` (B, T, D), ``cls_token_embeddings`` (B, D), ``grid`` (rows, columns of the patch tokens),
``sentence_embedding`` (B, d).
"""


def is_frozen(features: Features) -> bool:
    """Whether a batch holds what a frozen encoder gave, rather than what it takes."""
    return "token_embeddings" in features or "sentence_embedding" in features


def to_device(batch: Features, device: torch.device) -> Features:
    """Move the tensors of a batch to ``device``."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


def default_device() -> torch.device:
    """Return the accelerator of this machine where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
