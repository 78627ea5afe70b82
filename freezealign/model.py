"""FreezeAlign: frozen encoders in, one embedding space out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from freezealign.batch import Features, default_device
from freezealign.card import CardData
from freezealign.encoders import FrozenEncoder
from freezealign.features import SHARD_SIZES, FeatureStore, Level, Origin, StoreDtype
from freezealign.modality import is_single
from freezealign.modules import LogitScale, Module, Normalize, Pooling
from freezealign.space.encode import run_towers
from freezealign.space.recipes import EncoderLike, as_encoder, build_blocks, build_tower, by_modality, default_pooling
from freezealign.space.tower import TokenEmbeddings, Tower, check_widths, find_tower, least_level
from freezealign.training import FitArguments, History
from freezealign.vectors import check_finite, quantize, unit


class FreezeAlign(nn.Module):
    """One embedding space for several modalities, out of encoders that stay frozen.

    Args:
        encoders: Names of encoders, one a modality: ``["dinov2-large", "all-roberta-large-v1"]``; or for each modality
            a name, a :class:`FrozenEncoder`, or a whole tower as a list of blocks:
            ``{"image": [FrozenEncoder(…), TokenProjector(…), Pooling(…)], "text": "all-roberta-large-v1"}``.
        recipe: The blocks put behind an encoder given without any; see :mod:`freezealign.space.recipes`. ``auto`` is
            the paper's wiring, ``token``, until :meth:`fit` knows the number of pairs and may choose others.
        dim: Width of the shared space, for towers built by recipe.
        logit_scale: The temperature; a new one with the paper's bounds by default.
        device: Where the model lives; the machine's accelerator by default, else the CPU.
        seed: Of the projectors' initial weights; by default torch's global generator is used.

    Raises:
        ValueError: If an encoder is unknown, two encoders have one modality, or towers end in different widths.
    """

    def __init__(
        self,
        encoders: Sequence[EncoderLike] | Mapping[str, EncoderLike | Sequence[Module]],
        recipe: str = "auto",
        dim: int = 1024,
        logit_scale: LogitScale | None = None,
        device: str | torch.device | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        named = encoders if isinstance(encoders, Mapping) else by_modality(encoders)
        with torch.random.fork_rng([], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            first = "token" if recipe == "auto" else recipe
            towers = {name: build_tower(name, value, first, dim) for name, value in named.items()}
        check_widths(towers)
        self.towers = nn.ModuleDict(towers)
        by_name = all(isinstance(value, (str, FrozenEncoder)) for value in named.values())
        self.open_blocks = recipe == "auto" and by_name
        self.normalize = Normalize()
        self.logit_scale = logit_scale or LogitScale()
        self.model_card_data = CardData()
        self.to(device or default_device()).eval()

    # What the model is

    @property
    def modalities(self) -> list[str]:
        """Names of the towers."""
        return list(self.towers)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.logit_scale.temperature.device

    @property
    def encoders(self) -> dict[str, FrozenEncoder]:
        """The frozen encoder of each modality."""
        return {name: tower.encoder for name, tower in self._named_towers.items()}

    @property
    def similarity_fn_name(self) -> str:
        """The similarity of this space."""
        return "cosine"

    def tower(self, modality: str) -> Tower:
        """Return the tower of a modality.

        Raises:
            ValueError: If the model has none.
        """
        return find_tower(self._named_towers, modality)

    @property
    def _named_towers(self) -> dict[str, Tower]:
        return dict(self.towers.items())  # type: ignore[arg-type]

    def get_embedding_dimension(self) -> int:
        """Return the width of the shared space."""
        return check_widths(self._named_towers)

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Return the number of parameters, frozen encoders included unless ``only_trainable``."""
        if only_trainable:
            return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        towers = sum(tower.num_parameters() for tower in self._named_towers.values())
        return towers + sum(parameter.numel() for parameter in self.logit_scale.parameters())

    def forward(self, inputs: Mapping[str, Features]) -> dict[str, Tensor]:
        """Embed a batch of every modality in one call: (B, d) each, unit length.

        Args:
            inputs: For each modality what ``preprocess`` gives, or frozen features.
        """
        return {
            name: self.normalize(self.towers[name](features))["sentence_embedding"] for name, features in inputs.items()
        }

    def pooling(self, modality: str) -> Pooling:
        """Return what pools the tokens of a tower before anything is trained.

        Raises:
            ValueError: If its projectors read tokens, and :meth:`fit` is not free to choose others.
        """
        tower = self.tower(modality)
        if tower.first_pooling is not None:
            return tower.first_pooling
        if self.open_blocks:
            return default_pooling(tower.encoder)
        raise ValueError(
            f"the {modality} projectors of this model read tokens, which pooled features do not have: use "
            "level='tokens', or a model of recipe 'pooled', 'linear', 'glu' or 'kernel'."
        )

    def origins(self, level: str) -> dict[str, Origin]:
        """Return what frozen features of this model's encoders come from, for a store of one level."""
        poolings = {name: self.pooling(name).mode if level == "pooled" else None for name in self.towers}
        return {name: Origin.of(self.tower(name).encoder, poolings[name]) for name in self.towers}

    def set_recipe(self, recipe: str) -> None:
        """Give every tower the blocks of another recipe, with new weights."""
        for name, old in self._named_towers.items():
            blocks = build_blocks(old.encoder, recipe, old.get_embedding_dimension())
            self.towers[name] = Tower(blocks).to(self.device).train(self.training)

    # Encoding

    def encode(
        self,
        inputs: Any,
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
        prompt: str | None = None,
        prompt_name: None = None,
    ) -> Any:
        """Embed images, texts, or a mixed list of both, in order.

        Args:
            inputs: One item or a list of items. An image is a PIL image in any mode, a path, an http(s) address, bytes,
                an array (H, W[, C]) or a tensor (C, H, W); a text is a string; ``{modality: item}`` says what it is.
                Or frozen features of this model's encoder, as a feature store holds them.
            modality: What all items are, instead of inferring it.
            batch_size: Items a forward pass.
            normalize_embeddings: Return vectors of length 1.
            convert_to_numpy: Return a NumPy array; ``False`` returns a list of tensors.
            convert_to_tensor: Return one tensor on the model's device instead.
            truncate_dim: Keep only so many leading dimensions (before normalising).
            show_progress_bar: ``False`` hides the bar that appears after a second.
            device: Move the model there first.
            precision: ``float32``, or ``int8``, ``uint8``, ``binary``, ``ubinary`` as sentence-transformers
                quantises.
            prompt: Put in front of every text.
            prompt_name: Accepted because sentence-transformers' evaluators pass it; this model has no named prompts.

        Returns:
            (n, d); (d,) for a single item; (0, d) for an empty list.

        Raises:
            InputError: If an item cannot be read; the message gives its position. A ``ValueError``.
            ValueError: If the model has no tower for an item, or an embedding is not finite.
        """
        if prompt_name is not None:
            raise ValueError(f"this model has no prompt named {prompt_name!r}; pass prompt='…'.")

        def finish(tower: Tower, batch: Features) -> Tensor:
            vectors: Tensor = tower(batch)["sentence_embedding"][..., :truncate_dim]
            return functional.normalize(vectors, p=2, dim=-1) if normalize_embeddings else vectors

        single = is_single(inputs)
        rows = self._run(inputs, finish, modality, batch_size, show_progress_bar, device, prompt)
        check_finite(rows)
        empty = torch.empty(0, self.get_embedding_dimension(), device=self.device)[:, :truncate_dim]
        vectors = torch.stack(rows) if rows else empty
        vectors = quantize(vectors, precision)
        vectors = vectors[0] if single else vectors
        if convert_to_tensor:
            return vectors
        return vectors.cpu().numpy() if convert_to_numpy else list(vectors)

    def encode_image(self, inputs: Any, **options: Any) -> Any:
        """Embed images; see :meth:`encode`. A path that is no file is an error here, never a text."""
        return self.encode(inputs, modality="image", **options)

    def encode_text(self, inputs: Any, **options: Any) -> Any:
        """Embed texts in any language the text encoder knows; see :meth:`encode`."""
        return self.encode(inputs, modality="text", **options)

    def encode_query(self, inputs: Any, **options: Any) -> Any:
        """Embed queries of any modality; in this space a query is embedded as anything else."""
        return self.encode(inputs, **options)

    def encode_document(self, inputs: Any, **options: Any) -> Any:
        """Embed documents of any modality; in this space a document is embedded as anything else."""
        return self.encode(inputs, **options)

    def encode_tokens(
        self,
        inputs: Any,
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

        def finish(tower: Tower, batch: Features) -> list[TokenEmbeddings]:
            features = tower(batch, pool=False)
            if normalize_embeddings:
                features = self.normalize(features)
            return list(tower.token_rows(features))

        rows = self._run(inputs, finish, modality, batch_size, show_progress_bar, device)
        check_finite(row.embeddings for row in rows)
        if not convert_to_tensor:
            rows = [TokenEmbeddings(row.embeddings.cpu().numpy(), row.grid) for row in rows]
        return rows[0] if is_single(inputs) else rows

    @torch.no_grad()
    def _run(
        self,
        inputs: Any,
        finish: Callable[[Tower, Features], Iterable[Any]],
        modality: str | None,
        batch_size: int,
        show_progress_bar: bool | None,
        device: str | torch.device | None,
        prompt: str | None = None,
    ) -> list[Any]:
        """Apply ``finish`` to batches of each tower and return one result an item, in order."""
        if device is not None:
            self.to(device)
        was_training = self.training
        self.eval()
        try:
            return run_towers(
                self._named_towers,
                inputs,
                finish,
                modality=modality,
                prompt=prompt,
                batch_size=batch_size,
                device=self.device,
                show_progress_bar=show_progress_bar is not False,
            )
        finally:
            self.train(was_training)

    # Comparing

    @staticmethod
    def similarity(first: Any, second: Any) -> Tensor:
        """Return the cosine similarity of every row of ``first`` (n, d) with every row of ``second`` (m, d): (n, m).

        A single vector (d,) counts as one row.
        """
        return torch.atleast_2d(unit(first)) @ torch.atleast_2d(unit(second)).T

    @staticmethod
    def similarity_pairwise(first: Any, second: Any) -> Tensor:
        """Return the cosine similarity of row i of ``first`` (n, d) with row i of ``second`` (n, d): (n,)."""
        return (unit(first) * unit(second)).sum(-1)

    # Training

    def extract_features(
        self,
        data: str | Path | Iterable[Any],
        path: str | os.PathLike[str] | None = None,
        *,
        level: Level | None = None,
        dtype: StoreDtype | None = None,
        modalities: Sequence[str] | None = None,
        reuse: bool = False,
        batch_size: int = 32,
        shard_size: int | None = None,
        views: int = 1,
        engine: Literal["local", "ray"] = "local",
        strict: bool = False,
        show_progress_bar: bool = True,
    ) -> FeatureStore:
        """Run the frozen encoders over pairs, once, and keep what they give.

        Args:
            data: Pairs, as :meth:`fit` takes them; or the path of a folder of pictures with captions, a CSV, JSONL or
                Parquet file, or webdataset shards (see :func:`freezealign.data.sources.open_pairs`).
            path: A folder to keep them in. A run that was interrupted goes on where it stopped. Without a folder they
                are kept in memory.
            level: ``tokens`` keeps everything the encoders give; ``pooled`` one vector an item, for projectors that
                read nothing else. By default the least that this model's projectors need.
            dtype: What embeddings are stored as: ``float16`` (the default on disk), ``float32`` (the default in
                memory), or ``int8`` with one scale a row.
            modalities: Which towers the data has something for; all by default.
            reuse: Open the store at ``path`` if a complete one is there already, instead of refusing. Its encoders are
                checked; that it holds the features of this very data is for the caller to know.
            batch_size: Pairs a forward pass.
            shard_size: Pairs a file, which are lost together if the run is killed; 8,192 vectors or 1,024 token
                sequences by default.
            views: Rows an image has: itself, and ``views - 1`` random crops, mirrored half of the time. Training draws
                one of them in each epoch.
            engine: ``ray`` spreads the shards over a Ray cluster; needs a ``path`` that all its machines see.
            strict: Raise at the first bad item instead of skipping and listing it.
            show_progress_bar: Show progress if it takes longer than a second.

        Raises:
            FileExistsError: If a complete store is at ``path``, unless ``reuse``.
            MemoryError: If the features will not fit into memory; give a ``path``.
            OSError: If the folder cannot be written; finished shards are kept.
            RuntimeError: If another process is writing to the folder.
            ValueError: If the store there was made by other encoders or in another way, or no pair can be read.
        """
        from freezealign.features.extract import Extraction
        from freezealign.features.job import extract_features

        names = list(modalities or self.towers)
        level = level or least_level(map(self.tower, names))
        if level not in SHARD_SIZES:
            raise ValueError(f"unknown level {level!r}; choose one of {list(SHARD_SIZES)}.")
        extraction = Extraction(
            {name: self.tower(name).encoder for name in names},
            {name: self.pooling(name) for name in names} if level == "pooled" else {},
            dtype or ("float32" if path is None else "float16"),
            batch_size,
            shard_size or SHARD_SIZES[level],
            views,
            strict,
        )
        where = None if path is None else Path(path)
        return extract_features(data, extraction, self.device, where, reuse, engine, show_progress_bar)

    def fit(
        self,
        data: Any,
        evaluator: Callable[..., Any] | None = None,
        arguments: FitArguments | None = None,
        **options: Any,
    ) -> History:
        """Train the projectors and the temperature on pairs; the encoders stay as they are.

        Args:
            data: A DataLoader of (images, texts) batches; an iterable, list or ``datasets.Dataset`` of pairs, each
                ``(image, text)`` or ``{"image": …, "text": …}``, several captions as a list; a path of such data, as
                :meth:`extract_features` takes it; or a :class:`FeatureStore`, or several to be mixed.
            evaluator: Called as ``evaluator(model, output_path, epoch, steps)`` during training.
            arguments: How to train; see :class:`FitArguments`.
            **options: Fields of :class:`FitArguments`, instead of or on top of ``arguments``.

        Returns:
            The loss, temperature and learning rate of each step, the evaluations, and what was skipped.

        Raises:
            TypeError: If an option is not a field of :class:`FitArguments`.
            ValueError: If a batch holds more images than texts or the reverse, or nothing can be read.
            FloatingPointError: If the loss stops being finite.
        """
        from dataclasses import replace

        from freezealign.training.prepare import run_fit

        chosen, history, pairs = run_fit(self, data, replace(arguments or FitArguments(), **options), evaluator)
        self.open_blocks = False
        self.model_card_data.record_training(chosen, pairs, history)
        return history

    # Changing, saving, loading, sharing

    def swap_encoder(self, modality: str, encoder: EncoderLike, *, reset: bool = False) -> None:
        """Put another frozen encoder under a tower.

        Args:
            modality: Which tower.
            encoder: The new encoder.
            reset: Give the tower new, untrained blocks of the default recipe. Without it the trained blocks are kept:
                right only for an encoder whose space they already fit.

        Raises:
            ValueError: If the widths differ and ``reset`` is false.
        """
        new = as_encoder(encoder, modality)
        old = self.tower(modality)
        if reset:
            blocks: list[nn.Module] = list(build_blocks(new, dim=self.get_embedding_dimension()))
        elif new.get_embedding_dimension() != old.encoder.get_embedding_dimension():
            raise ValueError(
                f"'{new.name}' is {new.get_embedding_dimension()} wide, the {modality} blocks were built for "
                f"{old.encoder.get_embedding_dimension()}; reset=True gives the tower new blocks to be trained."
            )
        else:
            blocks = [new, *old.blocks]
        self.towers[modality] = Tower(blocks).to(self.device).train(self.training)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Save projectors, encoder references and a model card to a folder, in sentence-transformers' layout."""
        from freezealign.saving import save

        save(self, Path(path), Path(path).name)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        encoders: Mapping[str, EncoderLike] | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        token: bool | str | None = None,
    ) -> FreezeAlign:
        """Load a model from a folder or the hub. No code in it is run, and nothing outside it is read.

        Args:
            name_or_path: A folder that :meth:`save_pretrained` wrote, or a hub id.
            encoders: Other encoders for some towers, instead of those the model was trained with.
            device: Where the model lives; the machine's accelerator by default.
            revision: Commit, branch or tag on the hub.
            token: For private models.

        Raises:
            ValueError: If the folder is incomplete or damaged, or an encoder is not the one trained with.
            ConnectionError: If the model or an encoder has to come from a hub that cannot be reached.
        """
        from freezealign.saving import load

        return load(str(name_or_path), encoders=encoders or {}, device=device, revision=revision, token=token)

    def push_to_hub(
        self, repo_id: str, *, token: bool | str | None = None, private: bool = False, message: str = "Upload model"
    ) -> str:
        """Save the model to a hub repository, created if need be, and return the address of the commit."""
        from freezealign.integrations.hub import push
        from freezealign.saving import save

        return push(lambda folder: save(self, folder, repo_id), repo_id, token=token, private=private, message=message)

    def to_sentence_transformer(self) -> Any:
        """Return a stock ``SentenceTransformer`` that holds these very blocks: training one trains the other."""
        from freezealign.integrations.sentence_transformers import to_sentence_transformer

        return to_sentence_transformer(self)

    def as_clip_benchmark(self) -> Any:
        """Return ``(model, transform, tokenizer)``, on which clip-benchmark's ``evaluate`` functions run."""
        from freezealign.integrations.clip_benchmark import as_clip_benchmark

        return as_clip_benchmark(self)

    def as_mteb(self, name: str | None = None, revision: str | None = None) -> Any:
        """Return what ``mteb.evaluate`` takes, under ``organisation/name``; both have defaults of this very model."""
        from freezealign.integrations.mteb import as_mteb

        return as_mteb(self, name, revision)
