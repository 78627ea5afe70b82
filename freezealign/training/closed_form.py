"""The closed form: projectors by linear algebra instead of by gradient descent.

Regularised canonical correlation analysis, each direction weighted by its correlation. A tower that adds up CLS and
patches has two views, each whitened by itself, so that its patches alone are told apart too. With few pairs it beats a
trained projector and takes seconds; it is also a place to start training from.
Sources: Hotelling 1936; Li et al., "CSA: Data-efficient Mapping of Unimodal Features to Multimodal Features", 2025.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain, combinations_with_replacement

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from freezealign.batch import Features, to_device
from freezealign.features import FeatureStore
from freezealign.modules import KernelHead, Module, Pooling, ProjectionHead, RelativeHead, TokenProjector
from freezealign.modules.landmarks import LandmarkHead
from freezealign.modules.pooling import masked_mean
from freezealign.modules.projection import LinearProjection, NormedBranches, ResidualMLP
from freezealign.moments import Moments
from freezealign.space import Space, Tower
from freezealign.training.correlation import (
    AffineMap,
    choose_shrinkage,
    correlated_directions,
    total,
)

logger = logging.getLogger(__name__)

BATCH_SIZE = 256
FOLDS = 5
LANDMARKS = 2048
KERNEL_SHRINKAGE = 0.6
"""Of a kernel head, whose result is flat from 0.1 to 1; no criterion tried on pairs left out chose as well."""
AffineBranch = LinearProjection | NormedBranches | KernelHead
"""What has a linear branch: ``prepared`` is what it sees, ``set_affine`` sets it and zeroes what is added to it."""
ALIKE = 1e-12
"""Of the mean square: less variance is what rounding leaves of vectors that are equal."""


class AffineTower:
    """A tower as an affine map: the sum of what its linear branches make of an item, each of a view of its own.

    Towers of three forms have one: ``TokenProjector → Pooling (→ ProjectionHead)``, whose views are CLS and the mean
    over tokens, as far as they are pooled; ``Pooling → ProjectionHead``; and ``Pooling → KernelHead``, which is linear
    in similarities to landmarks.

    Raises:
        ValueError: If it is of another form; the message says what is in the way.
    """

    def __init__(self, tower: Tower) -> None:
        self.tower, self.width = tower, tower.encoder.get_embedding_dimension()
        self.projector: TokenProjector | None = None
        block: Module
        after: list[Module] = []
        match tower.blocks:
            case [TokenProjector() as block, Pooling() as pooling, *after] if len(after) < 2:
                self.projector = block
                if "cls" not in pooling.mode or block.cls_token is None:
                    branches = [block.tokens]
                else:
                    branches = [block.cls_token] if pooling.mode == "cls" else [block.cls_token, block.tokens]
            case [Pooling() as pooling, ProjectionHead() as block]:
                branches = [block.projection]
            case [Pooling() as pooling, KernelHead() as block]:
                branches = [block]
            case blocks:
                raise ValueError(f"the blocks {blocks} have no linear way through")
        self.pooling, self.branches, self.mlps = pooling, [], []
        for branch in branches:
            if not isinstance(branch, AffineBranch):
                raise ValueError(f"{block} has no linear branch")
            self.branches.append(branch)
        for head in after:
            mlp = head.projection if isinstance(head, ProjectionHead) and head.in_dim == head.out_dim else None
            if not isinstance(mlp, ResidualMLP):
                raise ValueError(f"{head} cannot pass a vector on unchanged")
            self.mlps.append(mlp)
        if pooling.mode == "max":
            raise ValueError("a maximum over tokens is not linear")

    def read(self, features: Features) -> list[Tensor]:
        """Return what each linear branch sees of a batch of frozen features: (B, width)."""
        return [self._view(branch, features) for branch in self.branches]

    def _view(self, branch: AffineBranch, features: Features) -> Tensor:
        if self.projector is None:
            return branch.prepared(self.tower.pooled(features))
        if branch is self.projector.cls_token:
            return branch.prepared(self.projector.cls_input(features))
        return masked_mean(branch.prepared(features["token_embeddings"]), self.pooling.mask(features))

    def set(self, maps: Sequence[AffineMap]) -> None:
        """Make the tower compute the sum of one affine map of each view that :meth:`read` gives."""
        for branch, affine in zip(self.branches, maps):
            branch.set_affine(*affine)
        for mlp in self.mlps:
            mlp.set_identity()


def closed_form_obstacle(space: Space, recipe: str | None = None) -> str | None:
    """Return why this space's projectors cannot be set by the closed form, or ``None`` if they can.

    With a ``recipe``, which the blocks are going to be of, only what it cannot change counts: all have a linear branch.
    """
    if _is_relative(space):
        return None
    if space.get_embedding_dimension() < 2:
        return "it has no directions to give to a shared space 1 wide"
    try:
        for tower in space.named_towers.values() if recipe is None else ():
            AffineTower(tower)
    except ValueError as obstacle:
        return str(obstacle)
    return None


@torch.no_grad()
def initialize_closed_form(
    space: Space, stores: Sequence[FeatureStore], weights: Sequence[float] | None = None, seed: int = 0
) -> None:
    """Set the weights of a space so that it computes the closed form exactly.

    What is not the closed form starts at zero and can be trained from there. Heads that compare with landmarks get the
    training pairs, or some of many.

    Args:
        space: Its two towers have a linear branch; :func:`closed_form_obstacle` says where one has not.
        stores: The training pairs.
        weights: Of a pair of each store.
        seed: Chooses among several captions of an item.

    Raises:
        ValueError: If a pair holds NaN or infinity, or all pairs are alike in a modality.
    """
    curved = _set_landmarks(space, FeatureStore.join(stores), seed)
    if _is_relative(space):
        return
    towers = {name: AffineTower(tower) for name, tower in space.named_towers.items()}
    names = [name for name, tower in towers.items() for _ in tower.branches]
    x, y = ([place for place, of in enumerate(names) if of == name] for name in towers)
    blocks = list(combinations_with_replacement(range(len(names)), 2))
    folds = [Moments(blocks, double=True) for _ in range(1 if curved else FOLDS)]
    before = 0
    for store, weight in zip(stores, weights or [1.0] * len(stores)):
        for start in range(0, len(store), BATCH_SIZE):
            index = np.arange(start, min(start + BATCH_SIZE, len(store)))
            inputs, _ = store.load(index, np.random.default_rng([seed, start]).random(len(index)))
            read = [tower.read(to_device(inputs[name], space.device)) for name, tower in towers.items()]
            seen = [_finite(view, name, before + index).cpu() for name, view in zip(names, chain(*read))]
            for number, moments in enumerate(folds):
                rows = torch.from_numpy(index % len(folds) == number)
                moments.update([view[rows] for view in seen], weight)
        before += len(store)
    everything = total(folds)
    for place, name in enumerate(names):
        _check_differences(everything.mean(place), everything.covariance(place, place).trace(), name)
    shrinkage = KERNEL_SHRINKAGE if curved else choose_shrinkage(folds, (x, y))
    logger.info("closed form: shrinkage %g", shrinkage)
    rotation = _zero_sum_basis(space.get_embedding_dimension())
    first, second = (shrinkage / tower.width for tower in towers.values())
    found = correlated_directions(everything, rotation.shape[1], (first, second), (x, y))
    for tower, maps in zip(towers.values(), found):
        basis = rotation[:, : len(maps[0].bias)]
        tower.set([AffineMap(basis @ affine.weight, basis @ affine.bias) for affine in maps])


def _is_relative(space: Space) -> bool:
    return all(isinstance(space.tower(name)[-1], RelativeHead) for name in space.towers)


def _set_landmarks(space: Space, store: FeatureStore, seed: int) -> bool:
    """Give heads that need them landmarks; return whether there are such heads."""
    heads = {name: head for name in space.towers if isinstance(head := space.tower(name)[-1], LandmarkHead)}
    if not heads:
        return False
    rng = np.random.default_rng(seed)
    index = np.sort(rng.permutation(len(store))[:LANDMARKS])
    inputs, _ = store.load(index, rng.random(len(index)))
    for name, head in heads.items():
        vectors = _finite(space.tower(name).pooled(inputs[name]), name, index)
        normed = layer_norm(vectors.double(), (head.in_dim,))
        _check_differences(normed.mean(0), normed.var(0, correction=0).sum(), name)
        head.set_landmarks(vectors)
    return True


def _finite(vectors: Tensor, modality: str, pairs: np.ndarray) -> Tensor:
    """Return vectors, one of each of some pairs, once it is sure that all are finite."""
    bad = ~vectors.isfinite().all(1).cpu().numpy()
    if bad.any():
        raise ValueError(
            f"the {modality} features of pair {pairs[bad][0]} hold NaN or infinity; extract them again, or leave out "
            "that pair: store.select([…])."
        )
    return vectors


def _check_differences(mean: Tensor, variance: Tensor, modality: str) -> None:
    """Raise a ``ValueError`` if the variance of vectors is no more than rounding."""
    if variance <= ALIKE * (mean.square().sum() + variance):
        raise ValueError(
            f"the {modality} features of all pairs are alike to the projectors, so that there is nothing to align; "
            "look at the data, and at what its encoder makes of it."
        )


def _zero_sum_basis(dim: int) -> Tensor:
    """Return dim - 1 orthonormal columns whose entries sum to zero: (dim, dim - 1).

    In their span the final LayerNorm of the text head only scales, which cosine similarity does not see.
    """
    contrasts = torch.eye(dim, dtype=torch.float64)[:, 1:] - 1 / dim
    return torch.linalg.qr(contrasts).Q
