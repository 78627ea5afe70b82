"""Pairs: what ``fit`` and ``extract_features`` read, from any container that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isnan
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, default_collate

from freezealign.inputs import Unreadable

COLLATE = "DataLoader(…, collate_fn=list)"


class Pair(NamedTuple):
    """What belongs together.

    Args:
        items: For each modality: ``{"image": [x], "text": ["a cat", "a pet"]}``.
        id: The name the data gives it; ``None`` where it gives none.
    """

    items: dict[str, list[Any]]
    id: str | None = None


@dataclass(frozen=True)
class Malformed(Unreadable):
    """Stands for the items of what is no pair of these modalities."""


def iterate_pairs(data: Iterable[Any], modalities: Sequence[str], position: int = 0) -> Iterator[Pair]:
    """Yield the pairs of ``data`` one by one.

    Args:
        data: An iterable of pairs, or of batches of pairs (a ``DataLoader``). A pair is ``(image, text)`` or
            ``{"image": …, "text": …}``, several captions as a list of strings. A batch is ``(images, texts)`` or the
            same dict with lists, arrays or tensors of equal length. What is none of these is a pair whose items say so
            when they are read.
        modalities: Names of the model's towers, in the order that tuples follow.
        position: Number of the first pair, for errors.

    Raises:
        RuntimeError: If ``data`` raises; the message names the pair at which it ended.
        ValueError: If a batch lacks a modality, or holds more of one than of another.
    """
    return chain.from_iterable(iterate_batches(data, modalities, position))


def iterate_batches(data: Iterable[Any], modalities: Sequence[str], position: int = 0) -> Iterator[list[Pair]]:
    """Yield the pairs of each element of ``data``; see :func:`iterate_pairs`."""
    loader: Any = getattr(data, "renamed", data)  # of which columns have other names
    is_loader = isinstance(loader, DataLoader) and loader.batch_size is not None
    elements = iter(data)
    while True:
        try:
            element = next(elements)
        except StopIteration:
            return
        except Exception as error:
            raise RuntimeError(f"the data ended at pair {position}: {type(error).__name__}: {error}") from error
        try:
            if is_loader:
                pairs = _pairs_of_batch(element, modalities, loader.collate_fn)
            elif is_batch(element, modalities):
                pairs = split_batch(element, modalities)
            else:
                pairs = [as_pair(element, modalities)]
        except ValueError as error:
            raise ValueError(f"the batch that begins with pair {position}: {error}") from None
        yield pairs
        position += len(pairs)


def as_pairs(data: Any, modalities: Sequence[str]) -> Any:
    """Return a table, a pandas one or a dict of columns, as a list of pairs; anything else as it is.

    Raises:
        TypeError: If it is a dict of data sets; the message names them.
        ValueError: If a table has two columns of one name, or a dict columns of different lengths.
    """
    if hasattr(data, "columns") and hasattr(data, "to_dict"):
        if twice := [name for name in modalities if list(data.columns).count(name) > 1]:
            raise ValueError(f"the table has several columns {twice}; rename all but one of each.")
        return data.to_dict("records")
    if not isinstance(data, Mapping):
        return data
    if not set(modalities) <= set(data):
        raise TypeError(f"a {type(data).__name__} of {list(data)} holds no pairs; pass one of its values.")
    return split_batch(data, modalities)


def undecoded(data: Any) -> Any:
    """Return a ``datasets`` data set with its images as bytes, anything else as it is.

    Its own decoding raises in the middle of the iteration, where one broken image would end it.
    """
    if not type(data).__module__.startswith("datasets.") or not getattr(data, "features", None):
        return data
    if (getattr(data, "format", None) or {}).get("type") is not None or getattr(data, "_formatting", None):
        return data  # a transform of the user's gets what it expects
    from datasets import Image

    for name, feature in data.features.items():
        if isinstance(feature, Image):
            data = data.cast_column(name, Image(decode=False))
    return data


def is_batch(element: Any, modalities: Sequence[str]) -> bool:
    """Whether an element holds several pairs: all its members are lists, or arrays or tensors with a batch axis.

    What has one id is one pair: a picture's several captions.
    """
    if isinstance(element, Pair) or (isinstance(element, Mapping) and isinstance(element.get("id"), (str, int))):
        return False
    if isinstance(element, Mapping):
        members = [element[modality] for modality in modalities if modality in element]
    else:
        members = list(element) if isinstance(element, (list, tuple)) else []
    return bool(members) and all(isinstance(m, (list, tuple)) or getattr(m, "ndim", 0) == 4 for m in members)


def as_pair(element: Any, modalities: Sequence[str]) -> Pair:
    """Return one pair with its items as lists; see :func:`iterate_pairs`."""
    if isinstance(element, Pair):
        return element
    name = element.get("id") if isinstance(element, Mapping) else None
    name = None if name is None or (isinstance(name, float) and isnan(name)) else str(name)  # as tables have it
    try:
        return Pair({key: _as_list(item) for key, item in _by_modality(element, modalities).items()}, name)
    except ValueError as error:
        return Pair({modality: [Malformed(str(error))] for modality in modalities}, name)


def split_batch(batch: Any, modalities: Sequence[str], collated: bool = False) -> list[Pair]:
    """Return the pairs of one batch; see :func:`iterate_pairs`.

    Args:
        batch: A column for each modality.
        modalities: In this order, if ``batch`` is a tuple.
        collated: Whether torch's default collation made it, which turns several captions of each of B pairs into one
            list for each place, of B captions: that is undone.
    """
    columns = _by_modality(batch, modalities)
    for modality, column in columns.items():
        is_column = hasattr(column, "__getitem__") and getattr(column, "ndim", 1) > 0
        if isinstance(column, (str, bytes, Mapping)) or not is_column:
            raise ValueError(
                f"'{modality}' of a batch is a list, an array or a tensor of items, not {type(column).__name__}. "
                f"{COLLATE} keeps pairs as they are."
            )
    if collated:
        for key, places in columns.items():
            if isinstance(places, list) and places and all(isinstance(place, (list, tuple)) for place in places):
                columns[key] = [list(captions) for captions in zip(*places)]
    sizes = {modality: len(column) for modality, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"a batch must hold as many items of each modality, got {sizes}. Where pairs have several captions, "
            f"{COLLATE} keeps them together."
        )
    ids = batch.get("id") if isinstance(batch, Mapping) else None
    rows = [dict(zip(columns, map(_as_list, items))) for items in zip(*columns.values())]
    return [Pair(items, None if ids is None else str(ids[row])) for row, items in enumerate(rows)]


def _pairs_of_batch(batch: Any, modalities: Sequence[str], collate: Any) -> list[Pair]:
    """Return the pairs of a batch of a ``DataLoader``: the list of them that ``collate_fn=list`` leaves, or columns."""
    count, holds_pairs = len(modalities), False
    if isinstance(batch, (list, tuple)) and collate is not default_collate:
        holds_pairs = collate is list or all(isinstance(pair, Mapping) for pair in batch)
        if not holds_pairs and all(isinstance(pair, (list, tuple)) and len(pair) == count for pair in batch):
            holds_pairs = len(batch) != count or _all_alike(zip(*batch))
            if len(batch) == count and holds_pairs == _all_alike(batch):
                raise ValueError(
                    f"it is {count} lists of {count}: pairs, or columns? {COLLATE} says that they are pairs; columns "
                    f"are told by their names: {{'{modalities[0]}': […], …}}."
                )
    if holds_pairs:
        return [as_pair(pair, modalities) for pair in batch]
    return split_batch(batch, modalities, collate is default_collate)


def _all_alike(groups: Iterable[Iterable[Any]]) -> bool:
    """Whether each group is texts, or lists of them, throughout, or nothing of the kind."""
    return all(len({isinstance(i, (str, list, tuple)) for i in group if i is not None}) <= 1 for group in groups)


def _by_modality(element: Any, modalities: Sequence[str]) -> dict[str, Any]:
    if isinstance(element, Mapping):
        missing = [modality for modality in modalities if modality not in element]
        if missing:
            raise ValueError(
                f"a pair needs {list(modalities)}, but has {sorted(element)}: {missing} missing. "
                "Rename the columns, for example dataset.rename_column('caption', 'text')."
            )
        return {modality: element[modality] for modality in modalities}
    if not isinstance(element, (list, tuple)) or len(element) != len(modalities):
        raise ValueError(
            f"a pair is ({', '.join(modalities)}) or a dict with these keys, got {type(element).__name__}"
            + (f" of length {len(element)}." if isinstance(element, (list, tuple)) else ".")
        )
    return dict(zip(modalities, element))


def _as_list(item: Any) -> list[Any]:
    """Several captions stay a list; everything else, arrays included, is one item."""
    if isinstance(item, np.ndarray) and item.dtype.kind in "UO":
        return list(item)
    return list(item) if isinstance(item, (list, tuple)) else [item]
