"""Backend ``sentence_transformers``: a text encoder with its own pooling and maximum length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from freezealign.batch import Features
from freezealign.encoders.base import Encoder, EncoderReference
from freezealign.encoders.identity import config_digest, digest
from freezealign.encoders.packaged import find_package, is_packaged, offline_remedy
from freezealign.encoders.text import CutWarning, special_token_ids, text_features, tokenizing
from freezealign.encoders.transformers import inner_states, safetensors_only
from freezealign.hub import explain_hub_errors


class SentenceTransformerEncoder(Encoder):
    """A ``SentenceTransformer`` of texts: its token embeddings, and its own pooled vector beside them.

    Args:
        model: The SentenceTransformer.
        max_length: Tokens a text instead of the model's ``max_seq_length``.
    """

    special_ids: torch.Tensor

    def __init__(self, model: Any, max_length: int | None = None) -> None:
        super().__init__()
        if not hasattr(model.tokenizer, "unk_token_id"):
            raise ValueError(
                "this SentenceTransformer has no tokens; use its vectors: FrozenEncoder(model.encode, 'text')."
            )
        self.modality, self.model, self.tokenizer = "text", model, model.tokenizer
        model.tokenizer.padding_side = "right"
        if max_length:
            model.max_seq_length = max_length
        self.max_length: int = model.max_seq_length
        self.register_buffer("special_ids", special_token_ids(model.tokenizer), persistent=False)
        self._cut = CutWarning(model.tokenizer, self.max_length)
        self.dim = self._token_width()

    def preprocess(self, items: list[Any]) -> Features:
        """Return ``input_ids`` and ``attention_mask`` (B, T), padded to the longest text of the batch."""
        batch: Features = self.model.preprocess(items)
        self._cut.check(items, batch["attention_mask"])
        return batch

    def forward(self, batch: Features) -> Features:
        """Return token embeddings, masks, and the model's own ``sentence_embedding``; see :class:`Encoder`."""
        return self._last(self.model(dict(batch)), batch)

    def forward_layers(self, batch: Features) -> list[Features]:
        """Return token embeddings and masks after every block; the last layer has ``sentence_embedding`` too."""
        config = getattr(getattr(self.model[0], "model", None), "config", None)
        if not hasattr(config, "output_hidden_states"):
            return super().forward_layers(batch)
        with _hidden_states_kept(config):
            output = self.model(dict(batch))
        inner = inner_states(output.get("all_layer_embeddings"), config)
        return [*(text_features(tokens, batch, self.special_ids) for tokens in inner), self._last(output, batch)]

    def _last(self, output: Features, batch: Features) -> Features:
        features = text_features(output["token_embeddings"], batch, self.special_ids)
        return {**features, "sentence_embedding": output["sentence_embedding"]}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The length limit, the vocabulary and the tokenizer."""
        return tokenizing(self.model.tokenizer, self.max_length)

    @property
    def configuration(self) -> str:
        """A digest of the transformer's configuration, and of the settings of what follows it."""
        own = config_digest(getattr(self.model[0], "model", None))
        later = [[type(module).__name__, module.get_config_dict()] for module in list(self.model)[1:]]
        return digest([own, later])

    def _token_width(self) -> int:
        width: int = self.model[0].get_embedding_dimension()
        return width


@contextmanager
def _hidden_states_kept(config: Any) -> Iterator[None]:
    """Let the model of ``config`` give its hidden states; sentence-transformers hands them on only if this says so."""
    before, config.output_hidden_states = config.output_hidden_states, True
    try:
        yield
    finally:
        config.output_hidden_states = before


def load(reference: EncoderReference) -> SentenceTransformerEncoder:
    """Load a SentenceTransformer from a package, a folder or the hub; code in its repository is never run."""
    from sentence_transformers import SentenceTransformer

    source, remedy = _locate(reference)
    with explain_hub_errors(reference.source, reference.revision, remedy), safetensors_only(source):
        model = SentenceTransformer(
            source,
            revision=reference.revision,
            device="cpu",
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    return SentenceTransformerEncoder(model, reference.max_length)


def _locate(reference: EncoderReference) -> tuple[str, str]:
    """Return the folder or hub id to load, and what to do where it is a hub id and the hub cannot be reached."""
    remedy = offline_remedy(reference.modality)
    if reference.package is None:
        return reference.source, remedy
    package = find_package(reference.package)
    if is_packaged(reference.package):
        return str(package.folder()), remedy
    return reference.source, f"{package.remedy} {remedy}"
