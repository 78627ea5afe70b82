"""Places in words: captions that say of every object of a scene where it stands, in several languages."""

# ruff: noqa: RUF001  # Arabic, Chinese, Japanese and Russian are written in their own letters and marks

from __future__ import annotations

from collections.abc import Sequence

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
    "pt": "Na linha {row}, coluna {column}: {what}.",
    "pt_BR": "Na linha {row}, coluna {column}: {what}.",
    "ru": "В ряду {row}, столбце {column}: {what}.",
    "tr": "{row}. satır, {column}. sütunda: {what}.",
    "zh": "第{row}行第{column}列：{what}。",
    "zh_CN": "第{row}行第{column}列：{what}。",
}
"""Language code to the sentence for one object; rows and columns count from 1."""
MARKS = ".!?…。！？؟"
CLOSERS = "\"')]”’»」』）"
LOOSE = " \t,;:،，、"


def describe_grid(language: str, captions: Sequence[str], columns: int) -> str:
    """Return one text that says in reading order what stands where on a grid ``columns`` wide.

    >>> describe_grid("en", ["A frog.", "Boo!", "red apple"], columns=2)
    'In row 1, column 1: A frog. In row 1, column 2: Boo! In row 2, column 1: red apple.'
    """
    phrase, sentences = PLACES[language], []
    for cell, caption in enumerate(captions):
        row, column = divmod(cell, columns)
        what = caption.rstrip(LOOSE).lstrip(LOOSE + ".")  # Tux Paint has Arabic captions with their full stop in front
        ended = what.rstrip(CLOSERS).endswith(tuple(MARKS))  # by the caption's own mark
        sentences.append((phrase[:-1] if ended else phrase).format(row=row + 1, column=column + 1, what=what))
    return ("" if phrase.endswith("。") else " ").join(sentences)
