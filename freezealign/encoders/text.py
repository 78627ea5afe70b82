"""What the text backends share: special tokens, what a tokenizer is known by, and telling when a text is cut."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from freezealign.batch import Features
from freezealign.encoders.base import Encoder
from freezealign.encoders.identity import tokenizer_identity


class TextEncoder(Encoder):
    """Base of the encoders of texts that are cut into tokens.

    Args:
        model: The model.
        tokenizer: Its Hugging Face tokenizer; it is made to pad on the right.
        dim: Width of the tokens.
        max_length: Tokens a text, specials included.
    """

    special_ids: Tensor

    def __init__(self, model: Any, tokenizer: Any, dim: int, max_length: int | None) -> None:
        super().__init__()
        self.modality, self.model, self.tokenizer, self.dim = "text", model, tokenizer, dim
        self.max_length, self.has_warned = max_length, False
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        words = {tokenizer.unk_token_id, tokenizer.mask_token_id}  # which stand for something of the text
        special = torch.tensor(sorted(set(tokenizer.all_special_ids) - words), dtype=torch.long)
        for part in model.modules():  # what a decoder keeps for the next token is for nobody here
            if getattr(getattr(part, "config", None), "use_cache", False):
                part.config.use_cache = False
        self.register_buffer("special_ids", special, persistent=False)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The length limit, the vocabulary and the tokenizer."""
        return {"max_length": self.max_length, **tokenizer_identity(self.tokenizer)}

    def finish(self, outputs: dict[str, Tensor], batch: Features) -> Features:
        """Return token embeddings and masks, and what else the graph gives; see :class:`Encoder`."""
        return {**self.features(outputs["token_embeddings"], batch), **outputs}

    def features(self, tokens: Tensor, batch: Features) -> Features:
        """Return ``tokens`` (B, T, D) with their masks, and the first token (B, D) as the summary of each text."""
        return {
            "token_embeddings": tokens,
            "cls_token_embeddings": tokens[:, 0],
            "attention_mask": batch["attention_mask"],
            "special_tokens_mask": torch.isin(batch["input_ids"], self.special_ids),
        }

    def warn_if_cut(self, texts: list[str], attention_mask: Tensor) -> None:
        """Warn, the first time only, if any of ``texts`` lost tokens to reach ``attention_mask`` (B, T)."""
        if self.has_warned or self.max_length is None:
            return
        full = [text for text, length in zip(texts, attention_mask.sum(1)) if length >= self.max_length]
        tokenized = self.tokenizer(full, truncation=False, verbose=False)["input_ids"] if full else []
        cut = [len(ids) for ids in tokenized if len(ids) > self.max_length]
        if cut:
            self.has_warned = True
            warnings.warn(
                f"{len(cut)} of {len(texts)} texts in this batch are cut to the encoder's {self.max_length} tokens "
                f"(the longest has {max(cut)}); further cuts are not reported. Where the encoder can read more, "
                "FrozenEncoder(…, max_length=…) raises the limit.",
                stacklevel=2,
            )
