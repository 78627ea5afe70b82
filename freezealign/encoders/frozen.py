"""FrozenEncoder: an encoder that nothing here can change, saved as a reference instead of as weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import NotRequired

from freezealign.batch import Features
from freezealign.encoders.base import Encoder, EncoderReference, with_tokens
from freezealign.encoders.engines import Engine
from freezealign.encoders.identity import identity_differences
from freezealign.encoders.registry import load_encoder, resolve
from freezealign.files import read_object
from freezealign.forms import formed
from freezealign.modality import modality_of
from freezealign.modules.base import Module


class FrozenEncoder(Module):
    """The first block of a tower: reads inputs and gives features that are never trained.

    It is always in eval mode (``train()`` does not wake its dropout), always without gradients, and saved as JSON:
    where it came from, its revision, its preprocessing, and the SHA-256 of its tensors.

    Args:
        encoder: A short name, hub id or folder; an :class:`~freezealign.encoders.EncoderReference`, complete in
            itself; an :class:`~freezealign.encoders.Encoder`; or a function from a list of inputs to vectors or tokens.
        modality: The tower it belongs to; needed for functions, and for models that have several towers.
        revision: Commit, branch or tag on the hub.
        image_size: Pixels a side, instead of the encoder's own.
        max_length: Tokens a text, instead of the encoder's own.
        layer: The layer whose features are given: 1 is the first block, -1 the last; by default the last.
        dim: Width of what a function gives; by default it is called once to find it.
        sample: An item to call it with, where the modality has none of its own.
        allow_pickle: Open pickled weights where there are no safetensors, by torch's loader of tensors only. It is not
            saved: a model on such an encoder is loaded with ``encoders={modality: FrozenEncoder(…)}``.
        dtype: ``float32`` or ``bfloat16``, what its model is run in; see :meth:`set_engine`.
        backend: ``torch``, ``openvino`` or ``onnx``, what runs its model.
        compile: Run it through ``torch.compile``.
        attn_implementation: How a transformers model computes attention, such as ``sdpa`` or ``eager``.
        model_kwargs: Handed to transformers or timm where the model is made. Like all below, not saved.
        cache_dir: Where models from the hub are kept; by default where all its libraries keep them.
        local_files_only: Ask the hub for nothing.
        token: For private or gated models; ``True`` is the one that ``hf auth login`` stored.

    Raises:
        ValueError: If the name is unknown, the modality cannot be told, there is no such layer, its files are damaged,
            lack weights that are used, or are pickled, or it cannot be made or run as asked.
        ConnectionError: If the encoder has to come from a hub that cannot be reached.
        ModuleNotFoundError: If the encoder, or ``backend``, comes from a package that is not installed.
    """

    def __init__(
        self,
        encoder: str | EncoderReference | Encoder | Callable[[list[Any]], Any],
        modality: str | None = None,
        revision: str | None = None,
        image_size: int | None = None,
        max_length: int | None = None,
        layer: int | None = None,
        allow_pickle: bool = False,
        dim: int | None = None,
        sample: Any = None,
        *,
        dtype: str | None = None,
        backend: str | None = None,
        compile: bool = False,
        attn_implementation: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
    ) -> None:
        super().__init__()
        if (dim is not None or sample is not None) and (isinstance(encoder, Encoder) or not callable(encoder)):
            raise ValueError("dim= and sample= are for functions; any other encoder has a width of its own.")
        hub = {"cache_folder": cache_dir, "local_files_only": local_files_only, "token": token}
        making = dict(model_kwargs or {})
        if attn_implementation is not None:
            making["attn_implementation"] = attn_implementation
        if isinstance(encoder, str):
            reference = resolve(encoder, modality, revision, **hub)
            encoder = replace(reference, image_size=image_size, max_length=max_length, layer=layer)
        if isinstance(encoder, EncoderReference):
            reference, layer = encoder, encoder.layer
            encoder = load_encoder(encoder, allow_pickle, making, **hub)
        elif making:
            raise ValueError(f"{sorted(making)} are for encoders that are loaded by name; this one is made already.")
        else:
            encoder = _as_encoder(encoder, modality, dim, sample)
            reference = EncoderReference(type(encoder).__name__, "callable", encoder.modality, "")
        if layer is not None:
            from freezealign.encoders.layers import OneLayer

            encoder = OneLayer(encoder, layer)
        self.encoder = encoder.requires_grad_(False).eval()
        self.reference = replace(reference, revision=encoder.commit or reference.revision, layer=encoder.layer)
        self.set_engine(backend, dtype, compile)

    def set_engine(self, backend: str | None = None, dtype: str | None = None, compile: bool = False) -> None:
        """Choose what runs the encoder's model, and in which precision; what is ``None`` is chosen at the first batch.

        By default what is fastest of what is installed and agrees with torch in float32: on an accelerator torch in
        bfloat16, on a CPU OpenVINO where it is installed. Tensors, identity and saved models stay the same.

        Args:
            backend: ``torch``, ``openvino`` or ``onnx``.
            dtype: ``float32`` or ``bfloat16``.
            compile: Run it through ``torch.compile``.

        Raises:
            ModuleNotFoundError: If a package is not installed.
            ValueError: If the encoder is a function, or something else that cannot be run so.
        """
        self.engine = Engine(self.encoder, backend, dtype, compile)

    @classmethod
    def precomputed(cls, dim: int, modality: str, name: str = "precomputed") -> FrozenEncoder:
        """Return an encoder of vectors that were made elsewhere: its items are vectors (dim,), an array (n, dim) is n.

        It is saved with a model and needs nothing to be loaded. It is known by modality, width and name.

        Args:
            dim: Their width D.
            modality: The tower they belong to: ``image``, ``text``, or any name of yours.
            name: What made them, such as ``clip-vit-l14``, where vectors of another source are to be told apart.

        Raises:
            ValueError: If the width is none of 1 to 1,000,000.

        >>> FrozenEncoder.precomputed(512, "voxels")
        FrozenEncoder('precomputed', voxels, 512 wide, 0 frozen)
        """
        return cls(EncoderReference(name, "precomputed", modality, str(dim)))

    @property
    def modality(self) -> str:
        """Which tower this encoder belongs to."""
        return self.encoder.modality

    @property
    def kind(self) -> str:
        """The modality by which its items are recognised and read; ``vector`` where they were made elsewhere."""
        return self.encoder.kind

    @property
    def summary(self) -> Literal["cls", "mean"]:
        """What stands for an item where one vector is kept: CLS where the modality has one, else the mean of tokens."""
        return "cls" if modality_of(self.modality).cls and self.encoder.has_cls else "mean"

    @property
    def modalities(self) -> list[str]:
        """The modality as a list, as sentence-transformers asks for it."""
        return [self.modality]

    @property
    def parts(self) -> list[FrozenEncoder]:
        """The encoders it is made of: itself, or the several of a :class:`~freezealign.encoders.JointEncoder`."""
        return [self]

    @property
    def name(self) -> str:
        """What the user called the encoder: a short name, a hub id or a folder."""
        return self.reference.name

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every tensor of the encoder; computed once, as it cannot change."""
        return self.encoder.fingerprint()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells this encoder from any other, as JSON: tensors, configuration, preprocessing; computed once."""
        preprocessing = json.loads(json.dumps(self.encoder.preprocessing))  # tuples become lists, as they do on disk
        configuration = self.encoder.configuration
        return {"fingerprint": self.fingerprint, "preprocessing": preprocessing, "configuration": configuration}

    @property
    def max_seq_length(self) -> int | None:
        """Tokens a text before it is cut; ``None`` where there is no limit, or no tokens."""
        return self.encoder.max_length

    def get_embedding_dimension(self) -> int:
        """Return the width of the encoder's tokens and vectors."""
        return self.encoder.dim

    def num_parameters(self) -> int:
        """Return the number of the encoder's parameters."""
        return self.encoder.num_parameters()

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in eval mode whatever ``mode`` says."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenEncoder:
        """Move or cast; what the encoder is, is told by the tensors that it was loaded with."""
        if fn(torch.zeros(1)).dtype != torch.float32:
            _ = self.identity
        return super()._apply(fn, recurse)

    def read(self, item: Any) -> Any:
        """Return one input as the encoder takes it: an RGB PIL image, a non-empty string.

        Raises:
            InputError: If the item cannot be read; the message names it.
        """
        return self.encoder.read(item)

    def preprocess(self, inputs: list[Any], prompt: str | None = None, **kwargs: Any) -> Features:
        """Read inputs and make them one batch on the CPU.

        Args:
            inputs: Items of this modality, in any of the forms :func:`freezealign.images.read_image` lists.
            prompt: Put in front of every text.
            **kwargs: What sentence-transformers hands to every input module; not used.
        """
        return self.collate([self.read(item) for item in inputs], prompt)

    def collate(self, items: list[Any], prompt: str | None = None) -> Features:
        """Make items that :meth:`read` gave one batch on the CPU; arguments as in :meth:`preprocess`."""
        if prompt:
            items = [prompt + item if isinstance(item, str) else item for item in items]
        return self.encoder.preprocess(items)

    @torch.no_grad()
    def forward(self, features: Features) -> Features:
        """Return frozen features; see :class:`~freezealign.encoders.Encoder` for keys and shapes.

        An encoder that gives one vector an item is an encoder with one token: ``token_embeddings`` (B, 1, D).

        Raises:
            ValueError: If the engine that was asked for cannot run it, or gives other vectors than torch in float32.
        """
        return with_tokens(self.engine.run(self.encoder, features))

    def __repr__(self) -> str:
        return (
            f"FrozenEncoder('{self.name}', {self.modality}, {self.encoder.dim} wide, {self.num_parameters():,} frozen)"
        )

    def get_config_dict(self) -> dict[str, Any]:
        """Return the reference with fingerprint and preprocessing, as JSON."""
        return {**asdict(self.reference), **self.identity, "dim": self.encoder.dim}

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return nothing: a frozen encoder is a reference, so no saved model carries its weights."""
        return {}

    @classmethod
    def from_folder(cls, folder: Path) -> FrozenEncoder:
        """Load the encoder a folder refers to, and check that it is the one the model was trained with.

        Raises:
            ValueError: If the encoder's tensors, configuration or preprocessing differ from the saved ones.
        """
        path = folder / cls.config_file_name
        config = read_object(path, {"fingerprint": str, "preprocessing": dict, "configuration": NotRequired[str]})
        keys = {field.name for field in fields(EncoderReference)}
        told = {key: value for key, value in config.items() if key in keys}
        reference = formed(path, told, EncoderReference)
        try:
            encoder = cls(reference)
        except ConnectionError:
            raise
        except (AttributeError, OSError) as error:  # what backends make of a source that is none
            raise ValueError(f"{path}: 'source' {reference.source[:80]!r} cannot be loaded ({error}).") from error
        encoder.check_identity(config)
        return encoder

    def check_identity(self, saved: dict[str, Any]) -> None:
        """Compare this encoder with the identity a model was saved with.

        Raises:
            ValueError: If they differ; the message names both.
        """
        for key, (before, now) in identity_differences(saved, self.identity).items():
            raise ValueError(
                f"the encoder '{self.name}' is not the one this model was trained with: its {key} is {now}, the saved "
                f"one is {before}. Install the encoder as it was, or pass encoders={{'{self.modality}': …}} to use it "
                "knowingly."
            )


def set_engines(encoders: Iterable[FrozenEncoder], backend: str | None, dtype: str | None) -> None:
    """Choose what runs several encoders, as :meth:`FrozenEncoder.set_engine` does; functions are run as they are.

    Nothing is changed where nothing is chosen.
    """
    for encoder in encoders if backend or dtype else ():
        for part in encoder.parts:
            if part.encoder.has_graph:
                part.set_engine(backend, dtype)


def _as_encoder(encoder: Any, modality: str | None, dim: int | None, sample: Any) -> Encoder:
    if isinstance(encoder, Encoder):
        return encoder
    if not callable(encoder):
        raise TypeError(f"an encoder is a name, an Encoder or a function, not {type(encoder).__name__}.")
    if modality is None:
        raise ValueError("say what a function encodes: FrozenEncoder(function, modality='text').")
    from freezealign.encoders.callable import CallableEncoder

    return CallableEncoder(encoder, modality, dim, sample=sample)
