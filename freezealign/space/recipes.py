"""Recipes: which blocks follow a frozen encoder when the user names only the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freezealign.encoders import FrozenEncoder
from freezealign.features import SHARD_SIZES
from freezealign.features.extract import Extraction
from freezealign.modality import MODALITIES, modality_of
from freezealign.modules import KernelHead, Module, Pooling, ProjectionHead, RelativeHead, TokenProjector
from freezealign.modules.projection import ProjectionKind
from freezealign.space.tower import Tower

EncoderLike = str | int | FrozenEncoder
"""A name, an encoder, or the width of vectors that were made elsewhere."""

HEADS: dict[str, ProjectionKind] = {"pooled": "linear+mlp", "linear": "linear", "glu": "glu"}
"""Recipes that pool first, and the kind of their head."""
RECIPES = ("token", *HEADS, "kernel", "relative")


def build_blocks(encoder: FrozenEncoder, recipe: str = "token", dim: int = 1024) -> list[Module]:
    """Return the blocks of a tower for one frozen encoder.

    ``token`` is the paper's wiring. Image: ``mean(project(patches)) + project'(CLS)``, with two separate token
    projectors; a function that gives vectors has no CLS, so only the first. Any other modality:
    ``mlp(mean(project(tokens)))``, the mean over all tokens, special ones included.
    With DINOv2-L and all-roberta-large-v1 at ``dim=1024`` that is 11,553,792 parameters, and the temperature.

    The others pool first, CLS for images and the mean over tokens for anything else, so that one stored vector an item
    is all that training needs: ``pooled`` then has one ``linear+mlp`` projection, ``linear`` one matrix, ``glu`` a
    gated head with no more parameters than ``pooled``, ``kernel`` a map of similarities to training pairs, for few
    pairs, and ``relative`` these similarities themselves, which needs no training.

    Raises:
        ValueError: If the recipe is unknown.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; choose one of {list(RECIPES)}, or pass a list of blocks.")
    width = encoder.get_embedding_dimension()
    if recipe == "kernel":
        return [encoder, default_pooling(encoder), KernelHead(width, dim)]
    if recipe == "relative":
        return [encoder, default_pooling(encoder), RelativeHead(width)]
    if recipe in HEADS:
        return [encoder, default_pooling(encoder), ProjectionHead(width, dim, HEADS[recipe])]
    if modality_of(encoder.modality).cls:
        cls = encoder.encoder.has_cls
        return [encoder, TokenProjector(width, dim, cls=cls), Pooling("cls+patch_mean" if cls else "patch_mean")]
    return [encoder, TokenProjector(width, dim), Pooling("mean"), ProjectionHead(dim, dim)]


def default_pooling(encoder: FrozenEncoder) -> Pooling:
    """Return how the recipes that pool first pool: CLS of an image, else the mean over tokens."""
    return Pooling(encoder.summary)


def pooled_extraction(encoder: FrozenEncoder, **settings: Any) -> Extraction:
    """Return how one vector an item of an encoder is computed; ``settings`` are fields of :class:`Extraction`."""
    poolings = {encoder.modality: default_pooling(encoder)}
    return Extraction({encoder.modality: encoder}, poolings, shard_size=SHARD_SIZES["pooled"], **settings)


def recipe_of(tower: Tower) -> str | None:
    """Return the recipe whose blocks a tower has; ``None`` if they are of none."""
    match tower.blocks:
        case [TokenProjector(), Pooling()] | [TokenProjector(), Pooling(), ProjectionHead()]:
            return "token"
        case [Pooling(), ProjectionHead(kind=kind)]:
            return next((recipe for recipe, own in HEADS.items() if own == kind), None)
        case [Pooling(), KernelHead()]:
            return "kernel"
        case [Pooling(), RelativeHead()]:
            return "relative"
    return None


def by_modality(encoders: Sequence[EncoderLike]) -> dict[str, FrozenEncoder]:
    """Load encoders and key them by their modality."""
    if isinstance(encoders, str):
        raise ValueError(f"pass a list of encoders, one a modality: FreezeAlign(['{encoders}', …]).")
    loaded = []
    for encoder in encoders:
        if isinstance(encoder, int):
            raise ValueError(f"say whose vectors are {encoder} wide: FreezeAlign({{'image': {encoder}, 'text': …}}).")
        loaded.append(encoder if isinstance(encoder, FrozenEncoder) else FrozenEncoder(encoder))
    named = {encoder.modality: encoder for encoder in loaded}
    if len(named) < len(loaded):
        kinds = [f"{encoder.name} ({encoder.modality})" for encoder in loaded]
        raise ValueError(
            f"two encoders have one modality: {', '.join(kinds)}; name the towers: FreezeAlign({{'…': …, '…': …}})."
        )
    return named


def as_encoder(value: EncoderLike, tower: str) -> FrozenEncoder:
    """Return ``value`` as a frozen encoder; a name is loaded as ``tower``, if that is a modality."""
    if isinstance(value, int):
        return FrozenEncoder.precomputed(value, tower)
    encoder = (
        value if isinstance(value, FrozenEncoder) else FrozenEncoder(value, tower if tower in MODALITIES else None)
    )
    if tower in MODALITIES and encoder.modality != tower:
        raise ValueError(f"'{encoder.name}' is an encoder of {encoder.modality}, not of {tower}.")
    return encoder


def build_tower(name: str, value: EncoderLike | Sequence[Module], recipe: str, dim: int) -> Tower:
    """Return a tower out of a list of blocks, or out of an encoder and the recipe's blocks."""
    if isinstance(value, EncoderLike):
        return Tower(build_blocks(as_encoder(value, name), recipe, dim))
    return Tower(value)
