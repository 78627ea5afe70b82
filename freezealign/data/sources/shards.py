"""Pairs from webdataset shards, as img2dataset writes them: tar files in which a sample's files follow one another."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from freezealign.data.sources.rows import make_pair, unreadable
from freezealign.data.sources.source import Columns, PairSource

END_MARK_BYTES = 1024
PADDING_BYTES = 2**20


class Shards(PairSource):
    """The samples of tar files; nothing in them is decoded but UTF-8 and JSON, and pictures stay bytes.

    webdataset groups the files of a shard into samples. Python's ``tarfile`` finds them, because webdataset's own
    reader ends without a word at a damaged header; and it finds them by their headers, so that leaving samples out
    reads none of their content.

    Args:
        paths: The tar files, in the order in which they are read.
        columns: Only that of the text can be chosen: it is a key of the samples' ``.json``.

    Raises:
        ModuleNotFoundError: If webdataset is not installed.
        ValueError: If a column of images or ids was chosen.
    """

    def __init__(self, paths: Sequence[Path], columns: Columns) -> None:
        columns.refuse(["image", "id"], str(paths[0]))
        self.paths, self.text = paths, columns.text
        import_webdataset()

    def _read(self, position: int) -> Iterator[dict[str, Any]]:
        for read in islice(self._readers(), position, None):
            yield read()

    def _readers(self) -> Iterator[Callable[[], dict[str, Any]]]:
        """Yield for each pair a function that reads it; it is called before the next is asked for."""
        group_by_keys = import_webdataset().tariterators.group_by_keys
        for path in self.paths:
            damage: list[str] = []
            try:
                with path.open("rb") as file:
                    for sample in group_by_keys(_members(file, damage), handler=partial(_note, damage)):
                        yield partial(self._pair, sample, path)
            except OSError as error:
                damage.append(f"{error}.")
            if damage:
                yield partial(unreadable, path.name, f"cannot read all of {path}: {' '.join(damage)}")

    def _pair(self, sample: Mapping[str, Any], path: Path) -> dict[str, Any]:
        key = sample["__key__"]
        try:
            return make_pair(key, _image(sample), self._caption(sample))
        except (OSError, ValueError, RecursionError) as error:
            return unreadable(key, f"{path}: cannot read '{key}': {error}")

    def _caption(self, sample: Mapping[str, Any]) -> Any:
        if "txt" in sample and self.text == "text":
            return sample["txt"]().decode("utf-8-sig").strip()
        if "json" not in sample:
            return None
        row = json.loads(sample["json"]())
        if not isinstance(row, dict):
            raise ValueError("its .json is not an object.")
        if self.text not in row and self.text != "text":
            raise ValueError(f"there is no '{self.text}' in its .json, which has {list(row)}.")
        return row.get(self.text, row.get("caption"))


def import_webdataset() -> Any:
    """Return the module ``webdataset``.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    try:
        import webdataset
    except ModuleNotFoundError:
        raise ModuleNotFoundError("this needs webdataset: pip install 'freezealign[web]'") from None
    return webdataset


def _image(sample: Mapping[str, Any]) -> bytes | None:
    from freezealign.inputs import IMAGE_SUFFIXES

    suffix = next((suffix for suffix in sample if f".{suffix}" in IMAGE_SUFFIXES), None)
    return None if suffix is None else sample[suffix]()


def _members(file: IO[bytes], damage: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the files of a shard as webdataset groups them; add to ``damage`` why there are no more of them."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for header in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # else they add up over the shard
                if header.isreg():
                    yield {"fname": header.name, "data": partial(_content, file, header), "__url__": ""}
            _check_end(file, archive.offset)
    except Exception as error:  # a damaged header makes tarfile raise whatever it happens to trip over
        damage.append(f"{error}; what follows is lost.")


def _content(file: IO[bytes], header: tarfile.TarInfo) -> bytes:
    end = file.seek(0, 2)
    if header.offset_data + header.size > end:
        raise ValueError(f"'{header.name}' is cut off.")
    file.seek(header.offset_data)
    return file.read(header.size)


def _check_end(file: IO[bytes], offset: int) -> None:
    """Raise if there is anything but the mark of the end, where ``tarfile`` stops at a bad header without a word."""
    file.seek(offset)
    rest = file.read(PADDING_BYTES)
    if rest.strip(b"\0"):
        raise ValueError(f"there is no valid header at byte {offset}")
    if len(rest) < END_MARK_BYTES:
        raise ValueError(f"it ends at byte {offset + len(rest)} without the mark of its end")


def _note(damage: list[str], error: Exception) -> bool:
    """Keep the reason for which webdataset left a file out, and let it go on."""
    damage.append(f"{error.args[0]}.")
    return True
