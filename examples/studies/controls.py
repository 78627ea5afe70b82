"""Encoders that have learned nothing: what a measure of alignment, or a score of texts, has to be compared with."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from freezealign import FrozenEncoder
from freezealign.encoders import Encoder
from freezealign.encoders.callable import CallableEncoder
from freezealign.encoders.timm import TimmEncoder

WORD = re.compile(r"\w+")
WIDTH = 512


def bag_of_words(name: str = "bag-of-words") -> FrozenEncoder:
    """Return an encoder that knows which words a text has, and nothing of what they mean."""
    encoder = CallableEncoder(add_words, "text", WIDTH, fingerprint=f"bag of words, SHA-256, {WIDTH} wide")
    return called(FrozenEncoder(encoder), name)


def add_words(texts: list[str]) -> np.ndarray:
    """Return the sum of the word vectors of each text (n, WIDTH); that of a text without words is 0.

    A word is a run of letters and digits in lower case. A language that writes no spaces has few of them.
    """
    vectors = [[word_vector(word) for word in WORD.findall(text.lower())] for text in texts]
    return np.stack([np.sum(words, 0) if words else np.zeros(WIDTH, np.float32) for words in vectors])


@lru_cache(maxsize=100_000)
def word_vector(word: str) -> np.ndarray:
    """Return the random vector of a word, of length 1 or so: the same in every process, unlike ``hash``."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(WIDTH, dtype=np.float32) / np.float32(WIDTH**0.5)


def random_weights(of: str, name: str, modality: str | None = None, seed: int = 0) -> FrozenEncoder:
    """Return the architecture of an encoder, with its preprocessing or tokenizer, as it is before any training.

    Args:
        of: Name of the trained encoder.
        name: What to call the random one.
        modality: Which tower of a model that has several.
        seed: Of the weights.

    Raises:
        ValueError: If the encoder has no weights that could be drawn anew.
    """
    trained = FrozenEncoder(of, modality)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        encoder = _drawn_anew(trained)
    return called(FrozenEncoder(encoder), name)


def _drawn_anew(trained: FrozenEncoder) -> Encoder:
    encoder = trained.encoder
    if isinstance(encoder, TimmEncoder):
        import timm

        return TimmEncoder(timm.create_model(trained.reference.source, pretrained=False))
    inner = transformers_model(encoder)
    if inner is None:
        raise ValueError(f"'{trained.name}' is no model of timm or transformers, so its weights cannot be drawn anew.")
    inner.load_state_dict(type(inner)(inner.config).state_dict())
    return encoder


def transformers_model(encoder: Encoder) -> nn.Module | None:
    """Return the model of Hugging Face Transformers inside an encoder; ``None`` where there is none."""
    model = getattr(encoder, "model", None)
    if isinstance(model, nn.Sequential):  # a SentenceTransformer
        model = getattr(model[0], "model", None)
    return model if hasattr(model, "config") else None


CONTROLS = {"bag-of-words": bag_of_words}
"""Controls that are no encoder with random weights, by the name a grid gives them."""


def called(encoder: FrozenEncoder, name: str) -> FrozenEncoder:
    """Return an encoder under a name of its own."""
    encoder.reference = replace(encoder.reference, name=name)
    return encoder
