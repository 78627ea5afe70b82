"""Recipes: which blocks follow a frozen encoder when the user names only the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import TypeIs

from freezealign.encoders import FrozenEncoder, JointEncoder
from freezealign.features import SHARD_SIZES
from freezealign.features.extract import Extraction
from freezealign.modality import MODALITIES, modality_of
from freezealign.modules import KernelHead, Module, Pooling, ProjectionHead, RelativeHead, TokenProjector
from freezealign.modules.projection import ProjectionKind
from freezealign.space.tower import Tower

EncoderLike = str | int | FrozenEncoder | Sequence[str | FrozenEncoder]
"""An encoder, the width of vectors that were made elsewhere, or several encoders of one modality side by side."""

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
        ValueError: If the recipe is unknown, or is ``token`` and there are several encoders without a common grid.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; choose one of {list(RECIPES)}, or pass a list of blocks.")
    if recipe == "token" and not _has_tokens(encoder):
        pooling = [own for own in RECIPES if own != "token"]
        raise ValueError(
            f"recipe 'token' reads tokens, and the {encoder.modality} encoders '{encoder.name}' have none in common: "
            f"choose one of {pooling}, or one encoder."
        )
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


def _has_tokens(encoder: FrozenEncoder) -> bool:
    return not isinstance(encoder, JointEncoder) or encoder.encoder.has_grid


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
    loaded = [as_encoder(encoder) for encoder in encoders]
    named = {encoder.modality: encoder for encoder in loaded}
    if len(named) < len(loaded):
        kinds = [f"{encoder.name} ({encoder.modality})" for encoder in loaded]
        raise ValueError(
            f"two encoders have one modality: {', '.join(kinds)}; name the towers: FreezeAlign({{'…': …, '…': …}}), or "
            "put them side by side in one: FreezeAlign([['…', '…'], …])."
        )
    return named


def is_encoder(value: object) -> TypeIs[EncoderLike]:
    """Whether ``value`` stands for an encoder, or for several; a frozen encoder alone in a list is a list of blocks."""
    if not isinstance(value, (list, tuple)):
        return isinstance(value, (str, int, FrozenEncoder))
    several = all(isinstance(one, (str, FrozenEncoder)) for one in value)
    return several and (len(value) > 1 or any(isinstance(one, str) for one in value))


def as_encoder(value: EncoderLike, tower: str = "") -> FrozenEncoder:
    """Return ``value`` as a frozen encoder, several as one; a name is loaded as ``tower``, if that is a modality."""
    if isinstance(value, FrozenEncoder):
        encoder = value
    elif isinstance(value, int):
        if not tower:
            raise ValueError(f"say whose vectors are {value} wide: FreezeAlign({{'image': {value}, 'text': …}}).")
        encoder = FrozenEncoder.precomputed(value, tower)
    elif isinstance(value, str):
        encoder = FrozenEncoder(value, tower if tower in MODALITIES else None)
    else:
        parts = [as_encoder(one, tower) for one in value]
        encoder = parts[0] if len(parts) == 1 else JointEncoder(parts)
    if tower in MODALITIES and encoder.modality != tower:
        raise ValueError(f"'{encoder.name}' is an encoder of {encoder.modality}, not of {tower}.")
    return encoder


def build_tower(name: str, value: EncoderLike | Sequence[Module], recipe: str, dim: int) -> Tower:
    """Return a tower out of a list of blocks, or out of an encoder and the recipe's blocks.

    ``auto`` is ``token`` where the encoder has tokens, else ``pooled``.
    """
    if not is_encoder(value):
        return Tower(value)
    encoder = as_encoder(value, name)
    if recipe == "auto":
        recipe = "token" if _has_tokens(encoder) else "pooled"
    return Tower(build_blocks(encoder, recipe, dim))
