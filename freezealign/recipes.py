"""Recipes: which blocks follow a frozen encoder when the user names only the encoder."""

from __future__ import annotations

from freezealign.modules import FrozenEncoder, Module, Pooling, ProjectionHead, TokenProjector

RECIPES = ("token",)


def build_blocks(encoder: FrozenEncoder, recipe: str = "token", dim: int = 1024) -> list[Module]:
    """Return the blocks of a tower for one frozen encoder.

    ``token`` is the paper's wiring. Image: ``mean(project(patches)) + project'(CLS)``, with two separate token
    projectors; a function that gives vectors has no CLS, so only the first. Any other modality:
    ``mlp(mean(project(tokens)))``, the mean over all tokens, special ones included.
    With DINOv2-L and all-roberta-large-v1 at ``dim=1024`` that is 11,553,792 parameters, and the temperature.

    Raises:
        ValueError: If the recipe is unknown.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; choose one of {list(RECIPES)}, or pass a list of blocks.")
    width = encoder.get_embedding_dimension()
    if encoder.modality == "image":
        cls = encoder.encoder.has_cls
        return [encoder, TokenProjector(width, dim, cls=cls), Pooling("cls+patch_mean" if cls else "patch_mean")]
    return [encoder, TokenProjector(width, dim), Pooling("mean"), ProjectionHead(dim, dim)]
