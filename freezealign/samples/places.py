"""Places in words: captions that say of every object of a scene where it stands, in several languages."""

# ruff: noqa: RUF001  # Arabic, Chinese, Japanese and Russian are written in their own letters and marks

from __future__ import annotations

from collections.abc import Iterable, Sequence

PORTUGUESE = "Na linha {row}, coluna {column}: {what}."
CHINESE = "第{row}行第{column}列：{what}。"
PLACES = {
    "en": "In row {row}, column {column}: {what}.",
    "ar": "في الصف {row}، العمود {column}: {what}.",
    "de": "In Zeile {row}, Spalte {column}: {what}.",
    "es": "En la fila {row}, columna {column}: {what}.",
    "fr": "À la ligne {row}, colonne {column} : {what}.",
    "it": "Nella riga {row}, colonna {column}: {what}.",
    "ja": "{row}行目の{column}列目：{what}。",
    "ko": "{row}행 {column}열: {what}.",
    "nl": "In rij {row}, kolom {column}: {what}.",
    "pl": "W wierszu {row}, kolumnie {column}: {what}.",
    "pt": PORTUGUESE,
    "pt_BR": PORTUGUESE,
    "ru": "В ряду {row}, столбце {column}: {what}.",
    "tr": "{row}. satır, {column}. sütunda: {what}.",
    "zh": CHINESE,
    "zh_CN": CHINESE,
}
"""Language code to the sentence for one object; rows and columns count from 1."""
MARKS = ".!?…。！？؟"
CLOSERS = "\"')]”’»」』）"
LOOSE = " \t,;:،，、"


def check_languages(languages: Iterable[str]) -> None:
    """Check that places can be said in each language.

    Raises:
        ValueError: If one is not among ``PLACES``.
    """
    unknown = [language for language in languages if language not in PLACES]
    if unknown:
        raise ValueError(f"there are no words for places in {unknown}; there are for {list(PLACES)}.")


def describe_grid(language: str, captions: Sequence[str], columns: int) -> str:
    """Return one text that says in reading order what stands where on a grid ``columns`` wide.

    >>> describe_grid("en", ["A frog.", "Boo!", "red apple"], columns=2)
    'In row 1, column 1: A frog. In row 1, column 2: Boo! In row 2, column 1: red apple.'
    """
    sentences = [_sentence(PLACES[language], caption, *divmod(cell, columns)) for cell, caption in enumerate(captions)]
    return ("" if PLACES[language].endswith("。") else " ").join(sentences)


def _sentence(phrase: str, caption: str, row: int, column: int) -> str:
    """Return the sentence for one object; its end is the caption's own mark, or else the phrase's."""
    what = caption.rstrip(LOOSE).lstrip(LOOSE + ".")  # Tux Paint has Arabic captions with their full stop in front
    ended = what.rstrip(CLOSERS).endswith(tuple(MARKS))
    return (phrase[:-1] if ended else phrase).format(row=row + 1, column=column + 1, what=what)
