"""The call that ``encode`` and its relatives share, in types: what comes back follows from what is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any, Literal, Protocol, TypedDict, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import Unpack

from freezealign.features import FrozenFeatures

Item = str | bytes | PathLike[str] | Image.Image | np.ndarray | Tensor | Mapping[str, object] | Callable[[], object]
Inputs = Item | Iterable[Item] | FrozenFeatures


class EncodeOptions(TypedDict, total=False):
    """Options of :meth:`freezealign.space.space.Space.encode` that do not change the type of what it returns."""

    modality: str | None
    batch_size: int
    normalize_embeddings: bool
    truncate_dim: int | None
    show_progress_bar: bool | None
    device: str | torch.device | None
    precision: str | None
    ranges: np.ndarray | None
    prompt: str | None
    prompt_name: None


class Encode(Protocol):
    """A method that embeds: a tensor, a list of tensors, or by default an array."""

    @overload
    def __call__(
        self,
        inputs: Inputs,
        *,
        convert_to_tensor: Literal[True],
        convert_to_numpy: bool = ...,
        **options: Unpack[EncodeOptions],
    ) -> Tensor: ...
    @overload
    def __call__(
        self, inputs: Inputs, *, convert_to_numpy: Literal[False], **options: Unpack[EncodeOptions]
    ) -> list[Tensor]: ...
    @overload
    def __call__(
        self, inputs: Inputs, *, convert_to_tensor: Literal[False] = ..., **options: Unpack[EncodeOptions]
    ) -> np.ndarray: ...


class EncodeMethod(Protocol):
    """:class:`Encode`, before it belongs to an object."""

    def __get__(self, instance: object, owner: type | None = None) -> Encode: ...


def encodes(method: Callable[..., Any]) -> EncodeMethod:
    """Type a method as :class:`Encode`; it is returned as it is."""
    return method


def encodes_as(example: EncodeMethod, modality: str | None = None) -> Callable[[Callable[..., Any]], EncodeMethod]:
    """Let a method that hands its options on show those of ``example``, but for a ``modality`` that it fixes."""
    signature = inspect.signature(example)  # type: ignore[arg-type]
    if modality is not None:
        parameters = [one for name, one in signature.parameters.items() if name != "modality"]
        signature = signature.replace(parameters=parameters)

    def decorate(method: Callable[..., Any]) -> EncodeMethod:
        method.__signature__ = signature  # type: ignore[attr-defined]
        return method

    return decorate
