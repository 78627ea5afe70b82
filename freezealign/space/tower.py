"""Tower: the blocks of one modality, a frozen encoder first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from freezealign.batch import Features
from freezealign.encoders import FrozenEncoder
from freezealign.modules import Module, Pooling, TokenProjector


class TokenEmbeddings(NamedTuple):
    """The tokens of one item in the shared space.

    Args:
        embeddings: (T, d); an image's patches in row-major order of ``grid``, or all tokens of a text.
        grid: (rows, columns) of the patches; ``None`` for a text.
    """

    embeddings: np.ndarray | Tensor
    grid: tuple[int, int] | None


class Tower(nn.Sequential):
    """A frozen encoder and the trained blocks that follow it.

    Raises:
        TypeError: If the first block is not a :class:`FrozenEncoder`.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        if not blocks or not isinstance(blocks[0], FrozenEncoder):
            first = type(blocks[0]).__name__ if blocks else "nothing"
            raise TypeError(f"a tower starts with a FrozenEncoder, not with {first}.")
        super().__init__(*blocks)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())  # type: ignore[arg-type]

    @property
    def encoder(self) -> FrozenEncoder:
        """The frozen encoder."""
        encoder = self[0]
        assert isinstance(encoder, FrozenEncoder)
        return encoder

    @property
    def blocks(self) -> list[Module]:
        """The trained blocks."""
        return list(self)[1:]

    def forward(self, features: Features, pool: bool = True) -> Features:
        """Embed a preprocessed batch, or frozen features computed earlier.

        Args:
            features: What the encoder's ``preprocess`` gives, or what its ``forward`` gave; or, of a tower that pools
                first, pooled vectors alone.
            pool: ``False`` leaves out the pooling: every token goes through the tower on its own, and
                ``sentence_embedding`` is (B, T, d).
        """
        if "token_embeddings" in features:
            blocks = self.blocks
        elif "sentence_embedding" in features:
            if self.first_pooling is None or not pool:
                raise ValueError("these are pooled vectors, and tokens are needed here: extract with level='tokens'.")
            blocks = self.blocks[1:]
        else:
            features, blocks = self.encoder(features), self.blocks
        match blocks:  # in one step where it counts; elsewhere results stay bit for bit those of the blocks in turn
            case [TokenProjector() as projector, Pooling() as pooling, *rest] if (
                self.training and pool and projector.can_pool(pooling)
            ):
                features, blocks = projector.pooled(features, pooling), rest
        for block in blocks:
            if isinstance(block, Pooling) and not pool:
                features = {**features, "sentence_embedding": features["token_embeddings"]}
            else:
                features = block(features)
        if "sentence_embedding" not in features:
            raise ValueError("the tower gives tokens but no vector; add a Pooling.")
        return features

    @property
    def first_pooling(self) -> Pooling | None:
        """The pooling of a tower that pools right after the encoder, so that pooled vectors are all it needs."""
        first = self.blocks[0] if self.blocks else None
        return first if isinstance(first, Pooling) else None

    def pooled(self, features: Features, otherwise: Pooling | None = None) -> Tensor:
        """Return the vectors (B, D) of a batch of frozen features, pooled as the tower does first, or ``otherwise``."""
        pooling = self.first_pooling or otherwise
        if "token_embeddings" in features and pooling is not None:
            features = pooling(features)
        vectors: Tensor = features["sentence_embedding"]
        return vectors

    @staticmethod
    def token_rows(features: Features) -> list[TokenEmbeddings]:
        """Return the tokens of each item of a batch embedded with ``pool=False``, without padding, in float32."""
        embeddings, mask = features["sentence_embedding"].float(), features.get("attention_mask")
        rows = embeddings if mask is None else [tokens[own.bool()] for tokens, own in zip(embeddings, mask)]
        return [TokenEmbeddings(tokens, features.get("grid")) for tokens in rows]

    def get_embedding_dimension(self) -> int:
        """Return the width of the tower's vectors."""
        widths = [getattr(block, "get_embedding_dimension", None) for block in self]
        return int([width() for width in widths if width is not None][-1])

    def num_parameters(self) -> int:
        """Return how many parameters the tower has, frozen and trained."""
        return self.encoder.num_parameters() + sum(p.numel() for block in self.blocks for p in block.parameters())


def find_tower(towers: Mapping[str, Tower], name: str) -> Tower:
    """Return the tower called ``name``.

    Raises:
        ValueError: If the model has none.
    """
    if name not in towers:
        raise ValueError(f"this model has no '{name}' tower; it has {list(towers)}.")
    return towers[name]


def check_widths(towers: Mapping[str, Tower]) -> int:
    """Return the width all towers share.

    Raises:
        ValueError: If there is no tower, or the widths differ.
    """
    widths = {name: tower.get_embedding_dimension() for name, tower in towers.items()}
    if len(set(widths.values())) != 1:
        raise ValueError(f"all towers must end in one width to share a space, got {widths or 'no towers'}.")
    return next(iter(widths.values()))
