"""Words of a text in any script, and how a text from somewhere else is shown."""

from __future__ import annotations

import unicodedata

import regex

# Scripts without spaces count by the character, also behind a number or a Latin letter.
UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = regex.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+|[^\w\s]|_")  # \w of regex has vowel signs, that of re has not
CONTROL = regex.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""What ends a line, steers a terminal, turns the direction of writing, or cannot be encoded."""


def printable(text: object) -> str:
    """Return a text on one line with nothing in it that a terminal would act on: control characters are escaped."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def word_ends(text: str) -> list[int]:
    """Return where the words and signs of a text end; Chinese, Japanese and Thai count by the character."""
    return [match.end() for match in WORD.finditer(text)]


def count_words(text: str) -> int:
    """Return how many of a text's words have a letter or a number in them: signs are none."""
    return sum(any(map(str.isalnum, match[0])) for match in WORD.finditer(text))


def plain(text: str) -> str:
    """Return a text in lower case and plain width, without punctuation, one space between its words."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(" " if unicodedata.category(sign)[0] in "PZC" else sign for sign in text).split())
