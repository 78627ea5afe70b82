"""Words of a text in any script."""

from __future__ import annotations

import re

# Scripts without spaces count by the character, also behind a number or a Latin letter.
UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+|[^\w\s]|_")


def word_ends(text: str) -> list[int]:
    """Return where the words and signs of a text end; Chinese, Japanese and Thai count by the character."""
    return [match.end() for match in WORD.finditer(text)]
