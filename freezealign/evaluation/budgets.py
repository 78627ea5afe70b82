"""Texts cut to a number of tokens: the first n that a tokenizer finds, or the first n words."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from freezealign.words import word_ends

Ends = Callable[[str], list[int]]
"""From a text to the positions at which its tokens end, in characters."""


def token_ends(tokenizer: Any) -> Ends:
    """Return a function that finds where the tokens of a text end, special tokens left out.

    Args:
        tokenizer: A fast Hugging Face tokenizer.

    Raises:
        ValueError: If it is not a fast one, which alone knows positions.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{type(tokenizer).__name__} does not know where its tokens end; use a fast tokenizer.")

    def ends(text: str) -> list[int]:
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
        return [end for _, end in read["offset_mapping"]]

    return ends


def counting(model: Any) -> tuple[Ends, str, int | None]:
    """Return how a model's texts are counted, what is counted, and how many of them its text encoder reads.

    A limit includes the special tokens that the encoder adds; they are taken off here. Words are counted, and no limit
    is known, where the model does not show its tokenizer.
    """
    encoder = getattr(model, "encoders", {}).get("text")
    if encoder is None or encoder.encoder.tokenizer is None:
        return word_ends, "words", None
    tokenizer, limit = encoder.encoder.tokenizer, encoder.max_seq_length
    special = tokenizer.num_special_tokens_to_add()
    return token_ends(tokenizer), "tokens", None if limit is None else limit - special


def cut(text: str, ends: Ends, budget: int) -> str:
    """Return the beginning of ``text`` that has at most ``budget`` tokens, cut where one ends and never in a character.

    What is left may split in another way than it did within the text, and into more tokens: then it is cut again.

    Args:
        text: What to cut.
        ends: Finds where tokens end, ascending; those that make up one character all end where it does.
        budget: The most tokens to keep.
    """
    while len(places := ends(text)) > budget:
        whole = bisect_left(places, places[budget])
        text = text[: [0, *places][min(budget, whole)]]
    return text
