"""Text files that hold one thing a line."""

from __future__ import annotations

from pathlib import Path


def find_lines(path: Path) -> list[str] | None:
    """Return the lines of a UTF-8 file, without white space around them, or ``None`` if there is no such file.

    Raises:
        ValueError: If it is not UTF-8.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from None


def read_lines(path: Path, remedy: str) -> list[str]:
    """Return the lines of a file that has to be there.

    Args:
        path: The file, as :func:`find_lines` reads it.
        remedy: What to do if there is none, for the error message.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8.
    """
    lines = find_lines(path)
    if lines is None:
        raise FileNotFoundError(f"{path} is missing; {remedy}")
    return lines
