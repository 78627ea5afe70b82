"""What readers of a model need of it: its towers, and vectors out of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from freezealign.encoders import FrozenEncoder
from freezealign.space.tower import Tower


class Space(Protocol):
    """Towers that end in one embedding space, of one modality each."""

    towers: nn.ModuleDict

    @property
    def __call__(self) -> Callable[..., Any]: ...  # noqa: D102

    @property
    def modalities(self) -> list[str]: ...  # noqa: D102

    @property
    def encoders(self) -> dict[str, FrozenEncoder]: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    @property
    def similarity_fn_name(self) -> str: ...  # noqa: D102

    def tower(self, modality: str) -> Tower: ...  # noqa: D102

    def get_embedding_dimension(self) -> int: ...  # noqa: D102

    def num_parameters(self, only_trainable: bool = False) -> int: ...  # noqa: D102

    @property
    def encode(self) -> Callable[..., Any]: ...  # noqa: D102

    @property
    def encode_text(self) -> Callable[..., Any]: ...  # noqa: D102

    def similarity(self, first: Any, second: Any) -> Tensor: ...  # noqa: D102

    def similarity_pairwise(self, first: Any, second: Any) -> Tensor: ...  # noqa: D102
