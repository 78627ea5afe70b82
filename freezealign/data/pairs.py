"""Pairs: what ``fit`` and ``extract_features`` read, from any container that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

Pair = dict[str, list[Any]]
"""For each modality the items that belong together: ``{"image": [x], "text": ["a cat", "a pet"]}``."""


def is_map_style(data: Any, modalities: Sequence[str]) -> bool:
    """Whether single pairs can be read by position, in any order."""
    if isinstance(data, (Mapping, DataLoader)) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return False
    return len(data) == 0 or not is_batch(data[0], modalities)


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
    for element in data:
        if is_batch(element, modalities):
            yield from split_batch(element, modalities)
        else:
            yield as_pair(element, modalities)


def count_pairs(data: Any, modalities: Sequence[str]) -> int | None:
    """Return the number of pairs in ``data`` where it can tell."""
    if isinstance(data, DataLoader):
        data = data.dataset
        return len(data) if hasattr(data, "__len__") else None
    return len(data) if is_map_style(data, modalities) else None


def undecoded(data: Any) -> Any:
    """Return a ``datasets`` data set with its images as bytes, anything else as it is.

    Its own decoding raises in the middle of the iteration, where one broken image would end it.
    """
    if not type(data).__module__.startswith("datasets.") or not getattr(data, "features", None):
        return data
    from datasets import Image

    for name, feature in data.features.items():
        if isinstance(feature, Image):
            data = data.cast_column(name, Image(decode=False))
    return data


def is_batch(element: Any, modalities: Sequence[str]) -> bool:
    """Whether an element holds several pairs: all its members are lists, or arrays or tensors with a batch axis."""
    if isinstance(element, Mapping):
        members = [element[modality] for modality in modalities if modality in element]
    else:
        members = list(element) if isinstance(element, (list, tuple)) else []
    return bool(members) and all(isinstance(m, (list, tuple)) or getattr(m, "ndim", 0) == 4 for m in members)


def as_pair(element: Any, modalities: Sequence[str]) -> Pair:
    """Return one pair with its items as lists; see :func:`iterate_pairs`."""
    return {modality: _as_list(item) for modality, item in _by_modality(element, modalities).items()}


def split_batch(batch: Any, modalities: Sequence[str]) -> Iterator[Pair]:
    """Yield the pairs of one batch; see :func:`iterate_pairs`."""
    columns = _by_modality(batch, modalities)
    sizes = {modality: len(column) for modality, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"a batch must hold as many items of each modality, got {sizes}.")
    for items in zip(*columns.values()):
        yield {modality: _as_list(item) for modality, item in zip(columns, items)}


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
