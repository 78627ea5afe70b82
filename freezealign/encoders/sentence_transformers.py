"""Backend ``sentence_transformers``: a text encoder with its own pooling and maximum length."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from freezealign.batch import Features
from freezealign.encoders.base import EncoderReference
from freezealign.encoders.folder import check_capacity, module_folders
from freezealign.encoders.identity import config_digest, digest
from freezealign.encoders.text import TextEncoder
from freezealign.encoders.transformers import NO_CODE, checked_class, inner_states, leave_out_missing, weight_options
from freezealign.files import read_json


class SentenceTransformerEncoder(TextEncoder):
    """A ``SentenceTransformer`` of texts: its token embeddings, and its own pooled vector beside them.

    Args:
        model: The SentenceTransformer.
        max_length: Tokens a text instead of the model's ``max_seq_length``.
    """

    def __init__(self, model: Any, max_length: int | None = None) -> None:
        if not hasattr(model.tokenizer, "unk_token_id"):
            raise ValueError(
                "this SentenceTransformer has no tokens; use its vectors: FrozenEncoder(model.encode, 'text')."
            )
        if max_length:
            model.max_seq_length = max_length
        super().__init__(model, model.tokenizer, int(model[0].get_embedding_dimension()), model.max_seq_length)

    def preprocess(self, items: list[Any]) -> Features:
        """Return ``input_ids`` and ``attention_mask`` (B, T), padded to the longest text of the batch."""
        batch: Features = self.model.preprocess(items)
        self.warn_if_cut(items, batch["attention_mask"])
        return batch

    def graph_inputs(self, batch: Features) -> dict[str, Tensor]:
        """Return the tensors of a batch."""
        return {name: value for name, value in batch.items() if isinstance(value, Tensor)}

    def graph(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return token embeddings, and the model's own ``sentence_embedding``."""
        output = self.model(dict(inputs))
        return {name: output[name] for name in ("token_embeddings", "sentence_embedding")}

    def forward_layers(self, batch: Features) -> list[Features]:
        """Return token embeddings and masks after every block; the last layer has ``sentence_embedding`` too."""
        config: Any = getattr(getattr(self.model[0], "model", None), "config", None)
        if not hasattr(config, "output_hidden_states"):
            return super().forward_layers(batch)
        # sentence-transformers hands hidden states on only if the configuration says so
        before, config.output_hidden_states = config.output_hidden_states, True
        try:
            output = self.model(dict(batch))
        finally:
            config.output_hidden_states = before
        inner = inner_states(output.get("all_layer_embeddings"), config)
        last = {name: output[name] for name in ("token_embeddings", "sentence_embedding")}
        return [*(self.features(tokens, batch) for tokens in inner), self.finish(last, batch)]

    @property
    def configuration(self) -> str:
        """A digest of the transformer's configuration, and of the settings of what follows it."""
        own = config_digest(getattr(self.model[0], "model", None))
        later = [[type(module).__name__, module.get_config_dict()] for module in list(self.model)[1:]]
        return digest([own, later])


def load(
    folder: Path, reference: EncoderReference, allow_pickle: bool, model_kwargs: dict[str, Any]
) -> SentenceTransformerEncoder:
    """Load a SentenceTransformer; code in its folder is never run.

    Raises:
        ValueError: If weights that are used are not in the checkpoint; the message lists them.
    """
    from sentence_transformers import SentenceTransformer

    options = weight_options(allow_pickle)
    configs = {part: read_json(path) for part in module_folders(folder) if (path := part / "config.json").is_file()}
    inner = [part for part, config in configs.items() if "model_type" in config]
    for part, config in configs.items():
        if part in inner:
            checked_class(part)
        elif {"in_features", "out_features"} <= set(config):
            check_capacity(part, partial(torch.nn.Linear, config["in_features"], config["out_features"]))
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={**options, **model_kwargs}, **NO_CODE)
    transformer = getattr(model[0], "model", None)
    if inner and isinstance(transformer, PreTrainedModel):
        _check_whole(transformer, inner[0], options, reference.name)
    return SentenceTransformerEncoder(model, reference.max_length)


def _check_whole(model: Any, folder: Path, options: dict[str, Any], source: str) -> None:
    """Take out or tell what the checkpoint of ``model`` lacks; it is read again where its names leave that open."""
    held: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            held |= set(file.keys())
    if not set(model.state_dict()) <= held:
        _, report = type(model).from_pretrained(folder, output_loading_info=True, **options, **NO_CODE)
        leave_out_missing(model, model, report, source)
