"""What the text backends share: special tokens, and telling when a text is cut."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import Any

import torch
from torch import Tensor

from freezealign.batch import Features
from freezealign.encoders.identity import tokenizer_digest, tokenizer_files_digest


def special_token_ids(tokenizer: Any) -> Tensor:
    """Return the ids of tokens that stand for no word: all special ones but unknown and mask."""
    words = {tokenizer.unk_token_id, tokenizer.mask_token_id}
    return torch.tensor(sorted(set(tokenizer.all_special_ids) - words), dtype=torch.long)


def vocabulary_digest(tokenizer: Any) -> str:
    """Return a SHA-256 over words and ids: two swapped ids turn every text into another one."""
    words = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def tokenizing(tokenizer: Any, max_length: int | None) -> dict[str, Any]:
    """Return what is done to a text, as JSON: the length limit, the vocabulary, and the whole tokenizer."""
    files = tokenizer_files_digest(tokenizer)
    return {
        "max_length": max_length,
        "vocabulary": vocabulary_digest(tokenizer),
        "tokenizer": tokenizer_digest(tokenizer),
        **({} if files is None else {"tokenizer_files": files}),
    }


def text_features(tokens: Tensor, batch: Features, special_ids: Tensor) -> Features:
    """Return ``tokens`` (B, T, D) with their masks, and the first token (B, D) as the summary of each text."""
    return {
        "token_embeddings": tokens,
        "cls_token_embeddings": tokens[:, 0],
        "attention_mask": batch["attention_mask"],
        "special_tokens_mask": torch.isin(batch["input_ids"], special_ids),
    }


class CutWarning:
    """Warn once when texts are longer than the encoder reads."""

    def __init__(self, tokenizer: Any, max_length: int | None) -> None:
        self.tokenizer, self.max_length, self.given = tokenizer, max_length, False

    def check(self, texts: list[str], attention_mask: Tensor) -> None:
        """Warn, the first time only, if any of ``texts`` lost tokens to reach ``attention_mask`` (B, T)."""
        if self.given or self.max_length is None:
            return
        full = [text for text, length in zip(texts, attention_mask.sum(1)) if length >= self.max_length]
        if not full:
            return
        lengths = [len(ids) for ids in self.tokenizer(full, truncation=False, verbose=False)["input_ids"]]
        cut = [length for length in lengths if length > self.max_length]
        if cut:
            self.given = True
            warnings.warn(
                f"{len(cut)} of {len(texts)} texts in this batch are cut to the encoder's {self.max_length} tokens "
                f"(the longest has {max(cut)}); further cuts are not reported. Where the encoder can read more, "
                "FrozenEncoder(…, max_length=…) raises the limit.",
                stacklevel=2,
            )
