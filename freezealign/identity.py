"""What tells one model from another."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from freezealign.encoders import FrozenEncoder
from freezealign.files import tensor_digest, to_json
from freezealign.modules import Module

if TYPE_CHECKING:
    from freezealign.space.space import Space


def weights_digest(model: Space) -> str:
    """Return a SHA-256 over all that an embedding depends on: the encoders' identity and the trained blocks."""
    digest = hashlib.sha256()
    for name in model.towers:
        for block in model.tower(name):
            digest.update(to_json([name, type(block).__name__, _settings(block)]))
            digest.update(tensor_digest(block.trained_tensors()).encode())
    return digest.hexdigest()


def _settings(block: Module) -> dict[str, Any]:
    """Return a block's settings; of an encoder only its identity, as where it lies makes no difference."""
    settings = block.get_config_dict()
    if isinstance(block, FrozenEncoder):
        return {key: settings[key] for key in ("fingerprint", "preprocessing")}
    return settings
