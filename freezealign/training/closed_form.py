"""The closed form: projectors by linear algebra instead of by gradient descent.

Regularised canonical correlation analysis, each direction weighted by its correlation. With few pairs it beats a
trained projector and takes seconds; it is also a place to start training from.
Sources: Hotelling 1936; Li et al., "CSA: Data-efficient Mapping of Unimodal Features to Multimodal Features", 2025.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from freezealign.features import FeatureStore
from freezealign.modules import RelativeHead
from freezealign.modules.landmarks import LandmarkHead
from freezealign.space import Space
from freezealign.training.affine import AffineMap, AffineTower, NoClosedFormError
from freezealign.training.moments import PairMoments, choose_shrinkage, correlated_directions

logger = logging.getLogger(__name__)

BATCH_SIZE = 256
FOLDS = 5
LANDMARKS = 2048
KERNEL_SHRINKAGE = 0.6
"""Of a kernel head, whose result is flat from 0.1 to 1; the criterion of the cross-validation cannot tell there."""


def closed_form_obstacle(space: Space) -> str | None:
    """Return why this space's projectors cannot be set by the closed form, or ``None`` if they can."""
    try:
        if not _is_relative(space):
            for name in space.towers:
                AffineTower(space.tower(name))
    except NoClosedFormError as obstacle:
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
    """
    curved = _set_landmarks(space, stores, seed)
    if _is_relative(space):
        return
    towers = {name: AffineTower(space.tower(name)) for name in space.towers}
    folds = [PairMoments() for _ in range(1 if curved else FOLDS)]
    for store, weight in zip(stores, weights or [1.0] * len(stores)):
        _add_store(folds, towers, store, weight, seed)
    shrinkage = KERNEL_SHRINKAGE if curved else choose_shrinkage(folds)
    logger.info("closed form: shrinkage %g%s", shrinkage, "" if curved else f", by {FOLDS}-fold cross-validation")
    rotation = _zero_sum_basis(space.get_embedding_dimension())
    first, second = (shrinkage / tower.width for tower in towers.values())
    maps = correlated_directions(PairMoments.sum(folds), rotation.shape[1], (first, second))
    for tower, affine in zip(towers.values(), maps):
        basis = rotation[:, : len(affine.bias)]
        tower.set(AffineMap(basis @ affine.weight, basis @ affine.bias))


def _is_relative(space: Space) -> bool:
    return all(isinstance(space.tower(name)[-1], RelativeHead) for name in space.towers)


def _set_landmarks(space: Space, stores: Sequence[FeatureStore], seed: int) -> bool:
    """Give heads that need them landmarks; return whether there are such heads."""
    heads = {name: head for name in space.towers if isinstance(head := space.tower(name)[-1], LandmarkHead)}
    if not heads:
        return False
    joined = FeatureStore.join(stores)
    rng = np.random.default_rng(seed)
    index = np.sort(rng.permutation(len(joined))[:LANDMARKS])
    inputs, _ = joined.load(index, rng.random(len(index)))
    for name, head in heads.items():
        head.set_landmarks(space.tower(name).pooled(inputs[name]))
    return True


def _add_store(
    folds: list[PairMoments], towers: dict[str, AffineTower], store: FeatureStore, weight: float, seed: int
) -> None:
    """Add every pair of a store to the sums of one of the folds."""
    for start in range(0, len(store), BATCH_SIZE):
        index = np.arange(start, min(start + BATCH_SIZE, len(store)))
        inputs, _ = store.load(index, np.random.default_rng([seed, start]).random(len(index)))
        x, y = (tower.read(inputs[name]) for name, tower in towers.items())
        for number, moments in enumerate(folds):
            rows = torch.from_numpy(index % len(folds) == number)
            moments.update((x[rows], y[rows]), weight)


def _zero_sum_basis(dim: int) -> Tensor:
    """Return dim - 1 orthonormal columns whose entries sum to zero: (dim, dim - 1).

    In their span the final LayerNorm of the text head only scales, which cosine similarity does not see.
    """
    contrasts = torch.eye(dim, dtype=torch.float64)[:, 1:] - 1 / dim
    return torch.linalg.qr(contrasts).Q
