"""What every source of pairs can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any


class PairSource(ABC):
    """Pairs ``{"id", "image", "text"}`` that can be read again and again, always in the same order."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iter_from(0)

    def iter_from(self, position: int) -> Iterator[dict[str, Any]]:
        """Yield the pairs from ``position`` on, counted from 0, without reading the pictures before it.

        Raises:
            ValueError: If ``position`` is negative.
        """
        if position < 0:
            raise ValueError(f"the position is the number of pairs to leave out, got {position}.")
        return self._read(position)

    @abstractmethod
    def _read(self, position: int) -> Iterator[dict[str, Any]]:
        """Yield the pairs from ``position`` on."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns that hold images, texts and ids."""

    image: str = "image"
    text: str = "text"
    id: str = "id"

    def renamed(self) -> dict[str, str]:
        """Return for each keyword that is not called by its own name its column."""
        return {keyword: column for keyword, column in asdict(self).items() if column != keyword}

    def check(self, found: Collection[str], where: str) -> None:
        """Raise a ``ValueError`` if a column is missing; there need be no column ``id``."""
        for keyword, column in asdict(self).items():
            if column not in found and (keyword, column) != ("id", "id"):
                raise ValueError(
                    f"{where}: there is no column '{column}'; the columns are {list(found)}. "
                    f"Say which one to use: {keyword}='…'."
                )

    def refuse(self, keywords: Collection[str], where: str) -> None:
        """Raise a ``ValueError`` if one of ``keywords`` was given a column where there can be none."""
        for keyword, column in self.renamed().items():
            if keyword in keywords:
                raise ValueError(f"{where} has no column to choose with {keyword}='{column}'; leave it out.")
