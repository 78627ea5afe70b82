"""Folders of pictures of which each sub-folder is a class."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from freezealign.data.sources.folder import find_pictures


def class_folders(root: str | PathLike[str]) -> dict[str, list[Path]]:
    """Return the pictures below each sub-folder of ``root`` under its name, both in the order of their names.

    Raises:
        FileNotFoundError: If there are no sub-folders, or there is no image in one.
    """
    folders = sorted(path for path in Path(root).glob("*") if path.is_dir())
    if not folders:
        raise FileNotFoundError(f"there is no sub-folder in '{root}'; make one for each class.")
    found = {folder.name: [folder / name for name in sorted(find_pictures(folder))] for folder in folders}
    for folder in folders:
        if not found[folder.name]:
            raise FileNotFoundError(f"there is no image in '{folder}'; remove the folder if it is no class.")
    return found
