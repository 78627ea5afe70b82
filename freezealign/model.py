"""FreezeAlign: frozen encoders in, one embedding space out. The facade: what it does stands in the rooms it opens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from freezealign.card import CardData
from freezealign.encoders.frozen import set_engines
from freezealign.features import FeatureStore, Level, StoreDtype
from freezealign.modules import LogitScale, Module
from freezealign.space import Space, Tower
from freezealign.space.recipes import (
    EncoderLike,
    as_encoder,
    build_blocks,
    build_tower,
    by_modality,
    is_encoder,
    recipe_of,
)
from freezealign.training import FitArguments, History

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from freezealign.integrations.clip_benchmark import ClipBenchmarkModel
    from freezealign.integrations.mteb import MtebModel

PairData = str | os.PathLike[str] | Iterable[object]
"""Pairs: a path, or what holds them; see :mod:`freezealign.data.pairs`."""


class FreezeAlign(Space):
    """One embedding space for several modalities, out of encoders that stay frozen.

    Args:
        encoders: Names of encoders, one a modality: ``["dinov2-large", "all-roberta-large-v1"]``; or for each modality
            a name, a :class:`FrozenEncoder`, or a whole tower as a list of blocks:
            ``{"image": [FrozenEncoder(…), TokenProjector(…), Pooling(…)], "text": "all-roberta-large-v1"}``.
            A number is the width of vectors that you have already: ``{"image": 768, "text": 384}``.
            Several encoders in place of one, ``{"image": ["dinov2-large", "sam-vit-large"], "text": …}``, stand side by
            side: see :class:`JointEncoder`.
        recipe: The blocks put behind an encoder given without any; see :mod:`freezealign.space.recipes`. ``auto`` is
            the paper's wiring, ``token``, until :meth:`fit` knows the number of pairs and may choose others; of several
            encoders without common tokens it is ``pooled``.
        dim: Width of the shared space, for towers built by recipe.
        logit_scale: The temperature; a new one with the paper's bounds by default.
        device: Where the model lives; the machine's accelerator by default, else the CPU.
        seed: Of the projectors' initial weights; by default torch's global generator is used.
        dtype: What the encoders run in, ``float32`` or ``bfloat16``; see :meth:`FrozenEncoder.set_engine`. Like
            ``backend``, it is for all encoders that are not functions.
        backend: What runs the encoders: ``torch``, ``openvino`` or ``onnx``.

    Raises:
        ModuleNotFoundError: If a package of ``backend`` is not installed.
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
        *,
        dtype: str | None = None,
        backend: str | None = None,
    ) -> None:
        named = encoders if isinstance(encoders, Mapping) else by_modality(encoders)
        with torch.random.fork_rng([], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            towers = {name: build_tower(name, value, recipe, dim) for name, value in named.items()}
        by_name = all(map(is_encoder, named.values()))
        super().__init__(towers, recipe if by_name else None, logit_scale, device)
        set_engines(self.encoders.values(), backend, dtype)
        self.model_card_data = CardData()

    # Training

    def extract_features(
        self,
        data: PairData,
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
            path: A folder to keep them in. A run that was interrupted goes on where it stopped, if the data is as it
                was; one that is complete is opened. Without a folder they are kept in memory.
            level: ``tokens`` keeps everything the encoders give; ``pooled`` one vector an item, for projectors that
                read nothing else. By default the least that this model's projectors need.
            dtype: What embeddings are stored as: ``float16`` (the default on disk), ``float32`` (the default in
                memory), or ``int8`` with one scale a row.
            modalities: Which towers the data has something for; all by default.
            reuse: Open a complete store at ``path`` whatever data it is of and however it was extracted. Its encoders
                are checked; that it holds the features of this very data is for the caller to know.
            batch_size: Pairs a forward pass.
            shard_size: Pairs a file, which are lost together if the run is killed; 8,192 vectors or 1,024 token
                sequences by default.
            views: Rows an image has: itself, and ``views - 1`` random crops, mirrored half of the time. Training draws
                one of them in each epoch.
            engine: ``ray`` spreads the shards over a Ray cluster; needs a ``path`` that all its machines see.
            strict: Raise at the first bad item instead of skipping and listing it.
            show_progress_bar: Show progress if it takes longer than a second.

        Raises:
            FileExistsError: If something else is at ``path``.
            MemoryError: If the features will not fit into memory; give a ``path``.
            OSError: If the folder cannot be written; finished shards are kept.
            RuntimeError: If another process is writing to the folder.
            ValueError: If the store there was made by other encoders, in another way or of other data (the message
                names the first pair that differs), or no pair can be read.
        """
        from freezealign.features.job import extract_features

        dtype = dtype or ("float32" if path is None else "float16")
        options = {"dtype": dtype, "batch_size": batch_size, "views": views, "strict": strict}
        extraction = self.extraction(level, modalities, shard_size, **options)
        where = None if path is None else Path(path)
        return extract_features(data, extraction, self.device, where, reuse, engine, show_progress_bar)

    def fit(
        self,
        data: PairData | FeatureStore | Sequence[FeatureStore],
        evaluator: Callable[..., object] | None = None,
        arguments: FitArguments | None = None,
        **options: object,
    ) -> History:
        """Train the projectors and the temperature on pairs; the encoders stay as they are.

        Args:
            data: A DataLoader of (images, texts) batches; an iterable, list or ``datasets.Dataset`` of pairs, each
                ``(image, text)`` or ``{"image": …, "text": …}``, several captions as a list; a path of such data, as
                :meth:`extract_features` takes it; or a :class:`FeatureStore`, or several to be mixed. Of a model that
                takes vectors also ``{"image": X, "text": Y}``, as :meth:`FeatureStore.from_arrays` takes them.
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
        from freezealign.training.fit import fit

        fitted = fit(self, data, replace(arguments or FitArguments(), **cast("dict[str, Any]", options)), evaluator)
        self.model_card_data.record_training(fitted.arguments, fitted.pairs, fitted.history)
        return fitted.history

    # Changing, saving, loading, sharing

    def swap_encoder(self, modality: str, encoder: EncoderLike, *, reset: bool = False) -> None:
        """Put another frozen encoder under a tower.

        Args:
            modality: Which tower.
            encoder: The new encoder, or several side by side.
            reset: Give the tower new, untrained blocks of the recipe it has. Without it the trained blocks are kept:
                right only for an encoder whose space they already fit.

        Raises:
            ValueError: If the widths differ and ``reset`` is false, or its blocks are of no recipe.
        """
        new = as_encoder(encoder, modality)
        old = self.tower(modality)
        if reset:
            if (recipe := recipe_of(old)) is None:
                raise ValueError(f"the {modality} blocks are of no recipe: build a FreezeAlign with new ones instead.")
            blocks = build_blocks(new, recipe, self.get_embedding_dimension())
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

        save(self, self.model_card_data, Path(path), Path(path).name)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        encoders: Mapping[str, EncoderLike] | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        token: bool | str | None = None,
        dtype: str | None = None,
        backend: str | None = None,
    ) -> FreezeAlign:
        """Load a model from a folder or the hub. No code in it is run, and nothing outside it is read.

        Args:
            name_or_path: A folder that :meth:`save_pretrained` wrote, or a hub id.
            encoders: Other encoders for some towers, instead of those the model was trained with.
            device: Where the model lives; the machine's accelerator by default.
            revision: Commit, branch or tag on the hub.
            token: For private models.
            dtype: What the encoders run in, as above.
            backend: What runs them, as above.

        Raises:
            ValueError: If the folder is incomplete or damaged, or an encoder is not the one trained with.
            ConnectionError: If the model or an encoder has to come from a hub that cannot be reached.
        """
        from freezealign.saving import load

        parts = load(str(name_or_path), encoders=encoders or {}, revision=revision, token=token)
        model = cls(parts.towers, logit_scale=parts.logit_scale, device=device, dtype=dtype, backend=backend)
        model.model_card_data, model.is_trained = parts.card, True
        return model

    def push_to_hub(
        self, repo_id: str, *, token: bool | str | None = None, private: bool = False, message: str = "Upload model"
    ) -> str:
        """Save the model to a hub repository, created if need be, and return the address of the commit."""
        from freezealign.saving import push

        return push(self, self.model_card_data, repo_id, token=token, private=private, message=message)

    def to_sentence_transformer(self) -> SentenceTransformer:
        """Return a stock ``SentenceTransformer`` that holds these very blocks: training one trains the other."""
        from freezealign.integrations.sentence_transformers import to_sentence_transformer

        return to_sentence_transformer(self)

    def as_clip_benchmark(self) -> ClipBenchmarkModel:
        """Return ``(model, transform, tokenizer)``, on which clip-benchmark's ``evaluate`` functions run."""
        from freezealign.integrations.clip_benchmark import as_clip_benchmark

        return as_clip_benchmark(self)

    def as_mteb(self, name: str | None = None, revision: str | None = None) -> MtebModel:
        """Return what ``mteb.evaluate`` takes, under ``organisation/name``; both have defaults of this very model."""
        from freezealign.integrations.mteb import as_mteb

        return as_mteb(self, name, revision)
