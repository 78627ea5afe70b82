"""What makes an encoder give what it gives besides its tensors: its configuration, its tokenizer, its processor.

Digests, as JSON-serialisable strings; equal however often and wherever an encoder is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from freezealign.files import file_digest, is_file
from freezealign.forms import differences

VOLATILE = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "architectures",
        "auto_map",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "finetuning_task",
        "task_specific_params",
        "device",
        "use_cache",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "gradient_checkpointing",
        "processor_class",
        "image_processor_type",
        "feature_extractor_type",
    }
)
"""Entries of configurations and processors that change nothing of what an encoder gives."""
OF_THE_RUN = frozenset({"training", "fused_attn", "grad_checkpointing"})
"""Settings of modules that the machine or the run decides, the result being the same."""
OF_THE_LOADER = frozenset({"is_local", "local_files_only", "backend", "model_max_length", "padding_side"})
"""Options of tokenizers that tell how they were loaded, or are set here."""
NOTED_LATER = ("configuration", "tokenizer", "processor", "tokenizer_files")
"""Parts of an identity that are compared where both sides state them: the first saved models and stores do not."""


def identity_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return how an encoder's identity differs from one that was saved: by key, there and here."""
    before, after = dict(saved), dict(now)
    inner, inner_now = dict(before["preprocessing"]), dict(after["preprocessing"])
    for key in NOTED_LATER:
        if not before.get(key):
            after.pop(key, None)
        if key not in inner:
            inner_now.pop(key, None)
    return differences({**before, "preprocessing": inner}, {**after, "preprocessing": inner_now})


def digest(content: Any) -> str:
    """Return a SHA-256 over something as JSON; what JSON has not counts by its words."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def settings_digest(settings: dict[str, Any]) -> str:
    """Return a digest of a configuration or processor, but for what is :data:`VOLATILE`."""
    return digest(_lasting(settings))


def config_digest(model: Any) -> str:
    """Return a digest of the configuration of a transformers model; empty of one that has none."""
    config: Any = getattr(model, "config", None)
    return settings_digest(config.to_diff_dict()) if hasattr(config, "to_diff_dict") else ""


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {str(key): _lasting(inner) for key, inner in value.items() if inner is not None}
        return {key: inner for key, inner in kept.items() if key not in VOLATILE and "_implementation" not in key}
    return [_lasting(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def tokenizer_identity(tokenizer: Any) -> dict[str, str]:
    """Return digests of the words of a Hugging Face tokenizer with their ids, and of all of it.

    All of it is normaliser, splitting, model, and what it puts around a text. A tokenizer in Python, without a fast
    backend, counts by its class, words and special tokens, and by what it was made of: options, vocabulary files.
    """
    words, backend = sorted(tokenizer.get_vocab().items()), getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        for key in ("truncation", "padding"):  # which encoding itself changes
            content.pop(key, None)
        return {"vocabulary": digest(words), "tokenizer": digest(content)}
    folder, options = Path(tokenizer.name_or_path), tokenizer.init_kwargs
    kept = {key: value for key, value in options.items() if not key.endswith("_file") and key not in OF_THE_LOADER}
    paths = {key: folder / name for key, name in tokenizer.vocab_files_names.items()}
    files = {key: file_digest(path) for key, path in paths.items() if is_file(path)}
    added = {str(index): repr(token) for index, token in tokenizer.added_tokens_decoder.items()}
    return {
        "vocabulary": digest(words),
        "tokenizer": digest([type(tokenizer).__name__, words, tokenizer.special_tokens_map]),
        "tokenizer_files": digest([_lasting(kept), files, added]),
    }


def modules_digest(model: nn.Module) -> str:
    """Return a digest of a model that keeps no configuration: the plain settings of each of its modules."""
    settings = {}
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str, tuple))}
        kept = {key: value for key, value in plain.items() if not key.startswith("_") and key not in OF_THE_RUN}
        settings[name] = [type(module).__name__, kept]
    return digest(settings)
