"""A FreezeAlign as a stock SentenceTransformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freezealign.space.space import Space


def route_mappings(model: Space) -> dict[tuple[None, str], str]:
    """Return sentence-transformers' routes: from (any task, modality) to the one tower of that modality."""
    kinds = [encoder.modality for encoder in model.encoders.values()]
    return {(None, kind): name for name, kind in zip(model.towers, kinds) if kinds.count(kind) == 1}


def to_sentence_transformer(model: Space) -> Any:
    """Return ``SentenceTransformer(Router, Normalize)`` that holds the very blocks of ``model``.

    Its embeddings are the model's, training either trains both, and every tool that takes a SentenceTransformer takes
    it. The temperature is not part of it: sentence-transformers' losses bring their own.

    Raises:
        ValueError: If two towers have one modality, between which it could not tell.
    """
    routes = route_mappings(model)
    if len(routes) < len(model.towers):
        raise ValueError(
            f"a SentenceTransformer finds a tower by its modality, and {model.modalities} share one; "
            "convert a model with one tower a modality."
        )
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Router

    router = Router({name: list(model.tower(name)) for name in model.towers}, route_mappings=routes)
    return SentenceTransformer(modules=[router, Normalize()], device=str(model.device), similarity_fn_name="cosine")
