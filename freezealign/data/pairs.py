"""Pairs: what ``fit`` and ``extract_features`` read, from any container that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, default_collate

from freezealign.inputs import Unreadable


class Pair(NamedTuple):
    """What belongs together.

    Args:
        items: For each modality: ``{"image": [x], "text": ["a cat", "a pet"]}``.
        id: The name the data gives it; ``None`` where it gives none.
    """

    items: dict[str, list[Any]]
    id: str | None = None


def is_map_style(data: Any, modalities: Sequence[str]) -> bool:
    """Whether single pairs can be read by position, in any order."""
    if isinstance(data, (str, Path, Mapping, DataLoader)) or not (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    ):
        return False
    try:
        return len(data) == 0 or not is_batch(data[0], modalities)
    except Exception:  # a pair that cannot be had
        return True


def iterate_pairs(data: Iterable[Any], modalities: Sequence[str]) -> Iterator[Pair]:
    """Yield the pairs of ``data`` one by one.

    Args:
        data: An iterable of pairs, or of batches of pairs (a ``DataLoader``). A pair is ``(image, text)`` or
            ``{"image": …, "text": …}``, several captions as a list of strings. A batch is ``(images, texts)`` or the
            same dict with lists, arrays or tensors of equal length.
        modalities: Names of the model's towers, in the order that tuples follow.

    Raises:
        ValueError: If a pair lacks a modality, or a batch holds more of one than of another.
    """
    is_loader = isinstance(data, DataLoader) and data.batch_size is not None
    for element in data:
        if is_loader:
            yield from pairs_of_batch(element, modalities, data)
        elif is_batch(element, modalities):
            yield from split_batch(element, modalities)
        else:
            yield as_pair(element, modalities)


def pairs_of_batch(batch: Any, modalities: Sequence[str], loader: Any) -> Iterator[Pair]:
    """Yield the pairs of one batch of a ``DataLoader``, of which every element is a batch."""
    if _is_list_of_pairs(batch, modalities):
        return (as_pair(pair, modalities) for pair in batch)
    return split_batch(batch, modalities, collated=loader.collate_fn is default_collate)


def pairs_from(data: Iterable[Any], modalities: Sequence[str], start: int) -> Iterator[Pair]:
    """Yield the pairs of ``data`` from number ``start`` on, without reading the ones before where that is possible."""
    if is_map_style(data, modalities):
        return (pair_at(data, index, modalities) for index in range(start, len(data)))  # type: ignore[arg-type]
    if hasattr(data, "iter_from"):
        return iterate_pairs(data.iter_from(start), modalities)
    if hasattr(data, "skip"):
        return iterate_pairs(data.skip(start), modalities)
    return islice(iterate_pairs(data, modalities), start, None)


def pair_at(data: Any, index: int, modalities: Sequence[str]) -> Pair:
    """Return one pair of data that has positions; if it cannot be had, one whose items say so when they are read."""
    try:
        element = data[index]
    except Exception as error:
        reason = f"the data raised {type(error).__name__}: {error}"
        return Pair({modality: [Unreadable(reason)] for modality in modalities})
    return as_pair(element, modalities)


def count_pairs(data: Any, modalities: Sequence[str]) -> int | None:
    """Return the number of pairs in ``data`` where it can tell."""
    if isinstance(data, DataLoader):
        data = data.dataset
        return len(data) if hasattr(data, "__len__") else None
    countable = is_map_style(data, modalities) or (hasattr(data, "iter_from") and hasattr(data, "__len__"))
    return len(data) if countable else None


def as_pairs(data: Any, modalities: Sequence[str]) -> Any:
    """Return a table, a pandas one or a dict of columns, as a list of pairs; anything else as it is.

    Raises:
        TypeError: If it is a dict of data sets; the message names them.
    """
    if hasattr(data, "columns") and hasattr(data, "to_dict"):
        return data.to_dict("records")
    if not isinstance(data, Mapping):
        return data
    if not set(modalities) <= set(data):
        raise TypeError(f"a {type(data).__name__} of {list(data)} holds no pairs; pass one of its values.")
    return [{**pair.items, "id": pair.id} for pair in split_batch(data, modalities)]


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
    if isinstance(element, Mapping):
        if isinstance(element.get("id"), (str, int)):
            return False
        members = [element[modality] for modality in modalities if modality in element]
    else:
        members = list(element) if isinstance(element, (list, tuple)) else []
    return bool(members) and all(isinstance(m, (list, tuple)) or getattr(m, "ndim", 0) == 4 for m in members)


def as_pair(element: Any, modalities: Sequence[str]) -> Pair:
    """Return one pair with its items as lists; see :func:`iterate_pairs`."""
    items = {modality: _as_list(item) for modality, item in _by_modality(element, modalities).items()}
    return Pair(items, _id(element))


def split_batch(batch: Any, modalities: Sequence[str], collated: bool = False) -> Iterator[Pair]:
    """Yield the pairs of one batch; see :func:`iterate_pairs`.

    Args:
        batch: A column for each modality.
        modalities: In this order, if ``batch`` is a tuple.
        collated: Whether torch's default collation made it, which turns several captions of each of B pairs into one
            list for each place, of B captions: that is undone.
    """
    columns = _by_modality(batch, modalities)
    if collated:
        columns = {key: _by_pair(column) for key, column in columns.items()}
    sizes = {modality: len(column) for modality, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"a batch must hold as many items of each modality, got {sizes}. Where pairs have several captions, give "
            "the DataLoader collate_fn=list."
        )
    ids = batch.get("id") if isinstance(batch, Mapping) else None
    for row, items in enumerate(zip(*columns.values())):
        named = {modality: _as_list(item) for modality, item in zip(columns, items)}
        yield Pair(named, None if ids is None else _id({"id": ids[row]}))


def _is_list_of_pairs(element: Any, modalities: Sequence[str]) -> bool:
    """Whether a batch is the list of its pairs, as ``collate_fn=list`` leaves it, rather than of its columns.

    What is in a column is of one type, what is in a pair is not.
    """
    if not isinstance(element, list):
        return False
    if all(isinstance(pair, Mapping) for pair in element):
        return True
    are_tuples = all(isinstance(pair, tuple) and len(pair) == len(modalities) for pair in element)
    return are_tuples and any(len(set(map(type, pair))) > 1 for pair in element)


def _by_pair(column: Any) -> Any:
    """Return a column of torch's default collation with one entry a pair."""
    nested = isinstance(column, list) and column and all(isinstance(place, (list, tuple)) for place in column)
    return [list(captions) for captions in zip(*column)] if nested else column


def _id(element: Any) -> str | None:
    name = element.get("id") if isinstance(element, Mapping) else None
    return None if name is None else str(name)


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
