"""Stores of the same items by several encoders, put together: with one store an encoder, one more is one pass more."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from freezealign.encoders.joint import joint_identity, side_by_side
from freezealign.features.columns import Column
from freezealign.features.frozen import Origin
from freezealign.features.store import FeatureStore

logger = logging.getLogger(__name__)


def join_encoders(stores: Sequence[FeatureStore]) -> FeatureStore:
    """Return the features of several stores of the same items side by side, as a ``JointEncoder`` would give them.

    A modality that several stores have by different encoders becomes that of the joint encoder, in the order of the
    stores; what is of one encoder is taken as it is. Items are matched by their ids; those that a store lacks are left
    out. The result is in memory.

    Args:
        stores: At level ``pooled``, each of one encoder a modality.

    Raises:
        ValueError: If there are no pooled vectors, no common items, or the texts of one item differ.

    >>> store = join_encoders([FeatureStore.open("lite0"), FeatureStore.open("lite2")])  # doctest: +SKIP
    >>> FreezeAlign({"image": ["efficientnet-lite0", "efficientnet-lite2"], ...}).fit(store)  # doctest: +SKIP
    """
    if other := next((store for store in stores if store.level != "pooled"), None):
        raise ValueError(f"{other} holds tokens, which have no common grid: extract with level='pooled'.")
    stores = [store.resident() for store in match_items(stores, [str(store) for store in stores])]
    columns = {key: column for key, column in stores[0].columns.items() if key.startswith("items/ids.")}
    origins = {}
    for modality in dict.fromkeys(name for store in stores for name in store.features):
        own: dict[str, FeatureStore] = {}
        for store in stores:
            if modality in store.features:
                own.setdefault(str(store.origins[modality]), store)
        first, *others = own.values()
        columns |= {
            key: column
            for key, column in first.columns.items()
            if key == f"items/{modality}" or key.startswith(f"{modality}/")
        }
        origins[modality] = first.origins[modality]
        if others:
            _check_rows(first, others, modality)
            vectors = side_by_side([store[modality].vectors() for store in own.values()])
            key = f"{modality}/sentence_embedding"
            halves = all(store.columns[key].dtype == np.float16 for store in own.values())
            columns.pop(f"{key}.scale", None)
            columns[key] = Column([vectors.numpy().astype(np.float16 if halves else np.float32)])
            origins[modality] = _joint_origin([store.origins[modality] for store in own.values()])
    skipped = dict.fromkeys(entry for store in stores for entry in store.skipped)
    return FeatureStore(origins, columns, list(skipped))


def match_items(stores: Sequence[FeatureStore], names: Sequence[str]) -> list[FeatureStore]:
    """Return stores with the items that all have, matched by their ids, in the order of the first.

    Args:
        stores: The stores.
        names: What errors call them.

    Raises:
        ValueError: If they have none in common, or two items of one have the same id.
    """
    places = []
    for store, called in zip(stores, names):
        ids = store.ids
        places.append(place := dict(zip(ids, range(len(ids)))))
        if len(place) < len(ids):
            twice = next(name for position, name in enumerate(ids) if place[name] != position)
            raise ValueError(f"two items of '{called}' have the id {twice!r}; items are matched by their ids.")
    common = [name for name in places[0] if all(name in place for place in places)] if places else []
    if not common:
        raise ValueError(f"the features of {list(names)} have no item id in common.")
    everything = len(set().union(*places))
    if len(common) < everything:
        left_out = everything - len(common)
        logger.warning("%d of %d items are left out, because not every encoder has them", left_out, everything)
    return [store.select([place[name] for name in common]) for store, place in zip(stores, places)]


def _check_rows(first: FeatureStore, others: Sequence[FeatureStore], modality: str) -> None:
    """Make sure that every item has the same rows in all, as far as can be told: as many, and of the same texts."""
    everything = np.arange(len(first[modality]))
    for other in others:
        differing = np.flatnonzero(first.counts(modality) != other.counts(modality))
        if not len(differing) and first[modality].texts is not None:
            pairs = zip(first[modality].captions(everything), other[modality].captions(everything))
            rows = [row for row, (mine, theirs) in enumerate(pairs) if mine != theirs]
            differing = np.repeat(np.arange(len(first)), first.counts(modality))[rows]
        if len(differing):
            raise ValueError(
                f"item {first.ids[differing[0]]!r} has other {modality} rows in {first} than in {other}: leave it out "
                "of both, store.select([…]), or extract both from the same data."
            )


def _joint_origin(origins: Sequence[Origin]) -> Origin:
    """Return the origin of what a ``JointEncoder`` of these encoders gives, pooled."""
    for origin in origins:
        if origin.pooling not in ("cls", "mean") or "encoder_0" in origin.preprocessing:
            raise ValueError(
                f"the features of '{origin.name}' (pooling {origin.pooling!r}) are not those of one encoder, CLS or "
                "the mean over tokens, and cannot stand beside others: extract each encoder with level='pooled'."
            )
    pooling = "cls" if all(origin.pooling == "cls" for origin in origins) else "mean"  # as SideBySide.has_grid
    identity = joint_identity([vars(origin) for origin in origins])
    return Origin("+".join(origin.name for origin in origins), **identity, pooling=pooling)
