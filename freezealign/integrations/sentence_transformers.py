"""A FreezeAlign as a stock SentenceTransformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freezealign.model import FreezeAlign


def to_sentence_transformer(model: FreezeAlign) -> Any:
    """Return ``SentenceTransformer(Router, Normalize)`` that holds the very blocks of ``model``.

    Its embeddings are the model's, training either trains both, and every tool that takes a SentenceTransformer takes
    it. The temperature is not part of it: sentence-transformers' losses bring their own.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Router

    routes = {(None, encoder.modality): name for name, encoder in model.encoders.items()}
    router = Router({name: list(model.tower(name)) for name in model.towers}, route_mappings=routes)
    return SentenceTransformer(modules=[router, Normalize()], device=str(model.device), similarity_fn_name="cosine")
