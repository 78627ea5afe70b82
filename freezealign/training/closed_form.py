"""The closed form: projectors by linear algebra instead of by gradient descent.

Regularised canonical correlation analysis, each direction weighted by its correlation. With few pairs it beats a
trained projector and takes seconds; it is also a place to start training from.
Sources: Hotelling 1936; Li et al., "CSA: Data-efficient Mapping of Unimodal Features to Multimodal Features", 2025.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from freezealign.features import FeatureStore
from freezealign.modules import Features, Module, ProjectionHead, TokenProjector
from freezealign.modules.pooling import masked_mean
from freezealign.modules.projection import ResidualMLP, TokenProjection
from freezealign.recipes import build_blocks

if TYPE_CHECKING:
    from freezealign.model import FreezeAlign
    from freezealign.tower import Tower

SHRINKAGE = 0.6
BATCH_SIZE = 256


class AffineMap(NamedTuple):
    """``x -> weight @ x + bias``."""

    weight: Tensor
    bias: Tensor


class PairMoments:
    """Sums over pairs of vectors x (dx) and y (dy) from which means and covariances follow; one pass, in float64."""

    def __init__(self, dx: int, dy: int) -> None:
        self.n = 0
        self.sum = torch.zeros(dx + dy, dtype=torch.float64)
        self.product = torch.zeros(dx + dy, dx + dy, dtype=torch.float64)
        self.dx = dx

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add a batch: (B, dx) and (B, dy)."""
        both = torch.cat([x, y], dim=1).to("cpu", torch.float64)
        self.n += len(both)
        self.sum += both.sum(0)
        self.product += both.T @ both

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the covariance of x, of y, and of x with y."""
        mean = self.sum / self.n
        covariance = self.product / self.n - torch.outer(mean, mean)
        return covariance[: self.dx, : self.dx], covariance[self.dx :, self.dx :], covariance[: self.dx, self.dx :]

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the mean of x and of y."""
        mean = self.sum / self.n
        return mean[: self.dx], mean[self.dx :]


def correlated_directions(moments: PairMoments, directions: int, shrinkage: float) -> tuple[AffineMap, AffineMap]:
    """Return for x and y the affine maps to their most correlated directions, each scaled by its correlation.

    Args:
        moments: Of the training pairs.
        directions: How many to keep at most.
        shrinkage: Share of the mean variance that is added to every variance before whitening.
    """
    xx, yy, xy = moments.covariances()
    whiten_x, whiten_y = inverse_square_root(xx, shrinkage), inverse_square_root(yy, shrinkage)
    left, correlations, right = torch.linalg.svd(whiten_x @ xy @ whiten_y, full_matrices=False)
    kept = correlations[:directions, None]
    weights = (kept * (left.T[:directions] @ whiten_x), kept * (right[:directions] @ whiten_y))
    maps = [AffineMap(weight, -weight @ mean) for weight, mean in zip(weights, moments.means())]
    return maps[0], maps[1]


def inverse_square_root(covariance: Tensor, shrinkage: float) -> Tensor:
    """Return ``(covariance + shrinkage · mean variance · identity) ** -0.5``."""
    ridge = shrinkage * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
    values, vectors = torch.linalg.eigh(covariance + ridge)
    return (vectors * values.clamp_min(torch.finfo(values.dtype).eps).rsqrt()) @ vectors.T


@torch.no_grad()
def initialize_closed_form(model: FreezeAlign, store: FeatureStore, seed: int = 0) -> None:
    """Set the weights of a ``token`` model so that it computes the closed form exactly.

    The image vector becomes an affine map of its layer-normed CLS, the text vector one of its mean layer-normed token;
    the other branches start at zero and can be trained from there.

    Args:
        model: Its two towers are of recipe ``token``; :func:`check_recipes` makes sure.
        store: The training pairs.
        seed: Chooses among several captions of an item.
    """
    names = list(model.towers)
    towers = [model.tower(name) for name in names]
    moments = PairMoments(*(tower.encoder.get_embedding_dimension() for tower in towers))
    for start in range(0, len(store), BATCH_SIZE):
        index = np.arange(start, min(start + BATCH_SIZE, len(store)))
        batch = store.load(index, np.random.default_rng([seed, start]).random(len(index)))
        moments.update(*(_layer_normed(tower, batch[name]) for name, tower in zip(names, towers)))
    rotation = _zero_sum_basis(model.get_embedding_dimension())
    for tower, affine in zip(towers, correlated_directions(moments, rotation.shape[1], SHRINKAGE)):
        basis = rotation[:, : len(affine.bias)]
        _set_tower(tower, AffineMap(basis @ affine.weight, basis @ affine.bias))


def _zero_sum_basis(dim: int) -> Tensor:
    """Return dim - 1 orthonormal columns whose entries sum to zero: (dim, dim - 1).

    In their span the final LayerNorm of the text head only scales, which cosine similarity does not see.
    """
    contrasts = torch.eye(dim, dtype=torch.float64)[:, 1:] - 1 / dim
    return torch.linalg.qr(contrasts).Q


def check_recipes(model: FreezeAlign) -> None:
    """Raise a ``ValueError`` if a tower has other blocks than the recipe ``token``."""
    for name in model.towers:
        tower = model.tower(name)
        with torch.device("meta"):  # shapes alone: no memory, and nothing drawn from the generators
            recipe = build_blocks(tower.encoder, "token", tower.get_embedding_dimension())[1:]
        if [_kind(block) for block in tower.blocks] != [_kind(block) for block in recipe]:
            raise ValueError(f"init='closed-form' is for towers of recipe 'token'; the {name} tower is {tower.blocks}.")


def _kind(block: Module) -> tuple[type, dict[str, Any]]:
    """Return a block's class and options, but for dropout, which the closed form does not see."""
    return type(block), {key: value for key, value in block.get_config_dict().items() if key != "dropout"}


def _layer_normed(tower: Tower, frozen: Features) -> Tensor:
    """Return what the linear branch of a tower sees: its layer-normed CLS, or the mean of its layer-normed tokens."""
    projector = _projector(tower)
    if projector.cls_token is not None:
        norm = _token_projection(projector.cls_token).prepare[0]
        return norm(frozen["cls_token_embeddings"].to(norm.weight.device))
    norm = _token_projection(projector.tokens).prepare[0]
    tokens = frozen["token_embeddings"].to(norm.weight.device)
    return masked_mean(norm(tokens), frozen["attention_mask"].to(tokens.device).bool())


def _set_tower(tower: Tower, affine: AffineMap) -> None:
    """Make a tower compute ``affine`` of its layer-normed input."""
    projector = _projector(tower)
    zero = AffineMap(torch.zeros_like(affine.weight), torch.zeros_like(affine.bias))
    if projector.cls_token is not None:
        _token_projection(projector.cls_token).set_affine(*affine)
        affine = zero
    _token_projection(projector.tokens).set_affine(*affine)
    if isinstance(head := tower[-1], ProjectionHead):
        assert isinstance(head.projection, ResidualMLP)
        head.projection.set_identity()


def _projector(tower: Tower) -> TokenProjector:
    projector = tower[1]
    assert isinstance(projector, TokenProjector)
    return projector


def _token_projection(module: torch.nn.Module) -> TokenProjection:
    assert isinstance(module, TokenProjection)
    return module
