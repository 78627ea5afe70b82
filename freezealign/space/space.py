"""Space: towers that end in one width, and how items of any modality become vectors in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from freezealign.batch import Features, default_device
from freezealign.encoders import FrozenEncoder
from freezealign.features import SHARD_SIZES, Level, Origin
from freezealign.features.extract import Extraction
from freezealign.files import tensor_digest
from freezealign.forms import to_json
from freezealign.modules import LogitScale, Normalize, Pooling
from freezealign.space.encode import group_inputs, run_groups
from freezealign.space.options import Inputs, encodes, encodes_as
from freezealign.space.recipes import build_blocks, default_pooling
from freezealign.space.tower import TokenEmbeddings, Tower, check_widths, find_tower
from freezealign.vectors import check_finite, check_quantization, quantize, unit


class Space(nn.Module):
    """One embedding space for several modalities: all that is needed to read a model, and nothing to train or save it.

    Args:
        towers: By name.
        recipe: Which blocks the towers have: ``auto`` leaves them to be chosen by training, ``None`` is none of ours.
        logit_scale: The temperature; a new one with the paper's bounds by default.
        device: Where the towers live; the machine's accelerator by default, else the CPU.

    Attributes:
        is_trained: Whether the weights of its blocks come from training.

    Raises:
        ValueError: If there is no tower, or they end in different widths.
    """

    def __init__(
        self,
        towers: Mapping[str, Tower],
        recipe: str | None = None,
        logit_scale: LogitScale | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        check_widths(towers)
        self.towers, self.recipe, self.is_trained = nn.ModuleDict(towers), recipe, False
        self.normalize = Normalize()
        self.logit_scale = logit_scale or LogitScale()
        self.to(device or default_device()).eval()

    # What it is

    @property
    def modalities(self) -> list[str]:
        """Names of the towers."""
        return list(self.towers)

    @property
    def device(self) -> torch.device:
        """Where the towers live."""
        return self.logit_scale.temperature.device

    @property
    def named_towers(self) -> dict[str, Tower]:
        """The towers by name."""
        return dict(self.towers.items())  # type: ignore[arg-type]

    @property
    def encoders(self) -> dict[str, FrozenEncoder]:
        """The frozen encoder of each modality."""
        return {name: tower.encoder for name, tower in self.named_towers.items()}

    @property
    def similarity_fn_name(self) -> str:
        """The similarity of this space."""
        return "cosine"

    def tower(self, modality: str) -> Tower:
        """Return the tower of a modality.

        Raises:
            ValueError: If there is none.
        """
        return find_tower(self.named_towers, modality)

    def get_embedding_dimension(self) -> int:
        """Return the width of the shared space."""
        return check_widths(self.named_towers)

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Return the number of parameters, frozen encoders included unless ``only_trainable``."""
        if only_trainable:
            return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        towers = sum(tower.num_parameters() for tower in self.named_towers.values())
        return towers + sum(parameter.numel() for parameter in self.logit_scale.parameters())

    def weights_digest(self) -> str:
        """Return a SHA-256 over all that an embedding depends on: the encoders' identity and the trained blocks."""
        digest = hashlib.sha256()
        for name, tower in self.named_towers.items():
            for block in tower:
                # of an encoder only its identity, as where it lies makes no difference
                settings = block.identity if isinstance(block, FrozenEncoder) else block.get_config_dict()
                digest.update(to_json([name, type(block).__name__, settings]))
                digest.update(tensor_digest(block.trained_tensors()).encode())
        return digest.hexdigest()

    # What it needs of features

    def pooling(self, modality: str) -> Pooling:
        """Return what pools the tokens of a tower before anything is trained.

        Raises:
            ValueError: If its projectors read tokens, and training is not free to choose others.
        """
        tower = self.tower(modality)
        if tower.first_pooling is not None:
            return tower.first_pooling
        if self.recipe == "auto":
            return default_pooling(tower.encoder)
        raise ValueError(
            f"the {modality} projectors of this model read tokens, which pooled features do not have: use "
            "level='tokens', or a model of recipe 'pooled', 'linear', 'glu' or 'kernel'."
        )

    def origins(self, level: str) -> dict[str, Origin]:
        """Return what frozen features of these encoders come from, for a store of one level."""
        poolings = {name: self.pooling(name).mode if level == "pooled" else None for name in self.towers}
        return {name: Origin.of(encoder, poolings[name]) for name, encoder in self.encoders.items()}

    def extraction(
        self,
        level: Level | None = None,
        modalities: Sequence[str] | None = None,
        shard_size: int | None = None,
        **settings: Any,
    ) -> Extraction:
        """Return how frozen features of these encoders are computed; ``settings`` are fields of :class:`Extraction`.

        Args:
            level: By default the least that the projectors need.
            modalities: Which towers there are items for; all by default.
            shard_size: Items a shard; 8,192 vectors or 1,024 token sequences by default.
            **settings: The rest.
        """
        names = list(modalities or self.towers)
        level = level or ("pooled" if all(self.tower(name).first_pooling for name in names) else "tokens")
        if level not in SHARD_SIZES:
            raise ValueError(f"unknown level {level!r}; choose one of {list(SHARD_SIZES)}.")
        encoders = {name: self.tower(name).encoder for name in names}
        poolings = {name: self.pooling(name) for name in names} if level == "pooled" else {}
        return Extraction(encoders, poolings, shard_size=shard_size or SHARD_SIZES[level], **settings)

    def set_recipe(self, recipe: str) -> None:
        """Give every tower the blocks of another recipe, with new weights."""
        for name, old in self.named_towers.items():
            blocks = build_blocks(old.encoder, recipe, old.get_embedding_dimension())
            self.towers[name] = Tower(blocks).to(self.device).train(self.training)
        self.recipe = recipe

    # Items become vectors

    def forward(self, inputs: Mapping[str, Features]) -> dict[str, Tensor]:
        """Embed a batch of every modality in one call: (B, d) each, unit length.

        Args:
            inputs: For each modality what ``preprocess`` gives, or frozen features.
        """
        return {name: self.project(name, features)["sentence_embedding"] for name, features in inputs.items()}

    def project(
        self,
        modality: str,
        features: Features,
        *,
        pool: bool = True,
        truncate_dim: int | None = None,
        normalize: bool = True,
    ) -> Features:
        """Take one batch through its tower: ``sentence_embedding`` is (B, d), or (B, T, d) without pooling."""
        features = self.towers[modality](features, pool=pool)
        features = {**features, "sentence_embedding": features["sentence_embedding"][..., :truncate_dim]}
        return self.normalize(features) if normalize else features

    @encodes
    def encode(
        self,
        inputs: Inputs,
        *,
        modality: str | None = None,
        batch_size: int = 32,
        normalize_embeddings: bool = True,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        truncate_dim: int | None = None,
        show_progress_bar: bool | None = None,
        device: str | torch.device | None = None,
        precision: str | None = "float32",
        ranges: np.ndarray | None = None,
        prompt: str | None = None,
        prompt_name: None = None,
    ) -> np.ndarray | Tensor | list[Tensor]:
        """Embed images, texts, or a mixed list of both, in order.

        Args:
            inputs: One item or a list of items. An image is a PIL image in any mode, a path, an http(s) address, bytes,
                an array (H, W[, C]) or a tensor (C, H, W); a text is a string; ``{modality: item}`` says what it is.
                Where the tower takes vectors made elsewhere, a vector (D,) is an item and an array (n, D) is n.
                Or frozen features of this model's encoder, as a feature store holds them.
            modality: What all items are, instead of inferring it.
            batch_size: Items a forward pass.
            normalize_embeddings: Return vectors of length 1.
            convert_to_numpy: Return a NumPy array; ``False`` returns a list of tensors.
            convert_to_tensor: Return one tensor on the model's device instead.
            truncate_dim: Keep only so many leading dimensions (before normalising).
            show_progress_bar: ``False`` hides the bar that appears after a second.
            device: Move the model there first.
            precision: ``float32``, or ``int8``, ``uint8``, ``binary``, ``ubinary`` as sentence-transformers quantises.
            ranges: (2, d) the least and the largest value of each dimension over a corpus, for ``int8`` and ``uint8``.
                By default those of these very items, so that an item's numbers depend on the others: of fewer than
                1,000 there is a warning, of one an error.
            prompt: Put in front of every text.
            prompt_name: Accepted because sentence-transformers' evaluators pass it; this model has no named prompts.

        Returns:
            (n, d) float32; (d,) for a single item; (0, d) for an empty list.

        Raises:
            InputError: If an item cannot be read; the message gives its position. A ``ValueError``.
            ValueError: If the model has no tower for an item, an option has no effect, or an embedding is not finite.
        """
        if prompt_name is not None:
            raise ValueError(f"this model has no prompt named {prompt_name!r}; pass prompt='…'.")
        if truncate_dim is not None and truncate_dim < 1:
            raise ValueError(f"truncate_dim must be at least 1, got {truncate_dim}.")

        def forward(name: str, batch: Features) -> Any:
            features = self.project(name, batch, truncate_dim=truncate_dim, normalize=normalize_embeddings)
            return features["sentence_embedding"]

        groups, single = group_inputs(self.named_towers, inputs, modality, prompt)
        count = sum(len(group.positions) for group in groups.values())
        width = len(range(self.get_embedding_dimension())[:truncate_dim])
        check_quantization(precision, ranges, count, width)
        with self._reading(device):
            vectors = torch.empty(count, width, dtype=torch.float32, device=self.device)
            for positions, batch in run_groups(groups, forward, batch_size, self.device, show_progress_bar):
                vectors[positions] = batch.to(vectors.dtype)
        check_finite(vectors)
        vectors = quantize(vectors, precision, ranges)
        if convert_to_numpy and not convert_to_tensor:
            vectors = vectors.cpu().numpy()  # type: ignore[assignment]
        if single:
            return vectors[0]
        return vectors if convert_to_tensor or convert_to_numpy else list(vectors)

    @encodes_as(encode, "image")
    def encode_image(self, inputs: Inputs, **options: Any) -> Any:
        """Embed images; see :meth:`encode`. A path that is no file is an error here, never a text."""
        return self.encode(inputs, modality="image", **options)

    @encodes_as(encode, "text")
    def encode_text(self, inputs: Inputs, **options: Any) -> Any:
        """Embed texts in any language the text encoder knows; see :meth:`encode`."""
        return self.encode(inputs, modality="text", **options)

    @encodes_as(encode)
    def encode_query(self, inputs: Inputs, **options: Any) -> Any:
        """Embed queries of any modality; in this space a query is embedded as anything else."""
        return self.encode(inputs, **options)

    @encodes_as(encode)
    def encode_document(self, inputs: Inputs, **options: Any) -> Any:
        """Embed documents of any modality; in this space a document is embedded as anything else."""
        return self.encode(inputs, **options)

    def encode_tokens(
        self,
        inputs: Inputs,
        *,
        modality: str | None = None,
        batch_size: int = 32,
        normalize_embeddings: bool = True,
        convert_to_tensor: bool = False,
        show_progress_bar: bool | None = None,
        device: str | torch.device | None = None,
    ) -> TokenEmbeddings | list[TokenEmbeddings]:
        """Embed the patches of images and the tokens of texts, each on its own, into the shared space.

        A patch embedding can be compared with a text embedding: that is where in the picture the text is. The CLS
        vector takes no part. Arguments as in :meth:`encode`.

        Returns:
            For each item ``embeddings`` (T, d) and ``grid`` (rows, columns); one such pair for a single item.
        """

        def forward(name: str, batch: Features) -> list[TokenEmbeddings]:
            features = self.project(name, batch, pool=False, normalize=normalize_embeddings)
            return self.tower(name).token_rows(features)

        groups, single = group_inputs(self.named_towers, inputs, modality, None)
        found: dict[int, TokenEmbeddings] = {}
        with self._reading(device):
            for positions, items in run_groups(groups, forward, batch_size, self.device, show_progress_bar):
                found |= zip(positions.tolist(), items)
        items = [found[position] for position in range(len(found))]
        check_finite(torch.as_tensor(item.embeddings) for item in items)
        if not convert_to_tensor:
            items = [TokenEmbeddings(torch.as_tensor(item.embeddings).cpu().numpy(), item.grid) for item in items]
        return items[0] if single else items

    @contextmanager
    def _reading(self, device: str | torch.device | None) -> Iterator[None]:
        """Be in eval mode, without gradients, on ``device`` if one is named, while the block runs."""
        if device is not None:
            self.to(device)
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)

    # Comparing

    @staticmethod
    def similarity(first: np.ndarray | Tensor, second: np.ndarray | Tensor) -> Tensor:
        """Return the cosine similarity of every row of ``first`` (n, d) with every row of ``second`` (m, d): (n, m).

        A single vector (d,) counts as one row.
        """
        return torch.atleast_2d(unit(first)) @ torch.atleast_2d(unit(second)).T

    @staticmethod
    def similarity_pairwise(first: np.ndarray | Tensor, second: np.ndarray | Tensor) -> Tensor:
        """Return the cosine similarity of row i of ``first`` (n, d) with row i of ``second`` (n, d): (n,)."""
        return (unit(first) * unit(second)).sum(-1)
