"""Pairs from webdataset shards, as img2dataset writes them: tar files in which the files of a sample share a name."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from freezealign.data.sources.source import Columns, PairSource, make_pair, unreadable
from freezealign.inputs import Unreadable

END_MARK_BYTES = 1024
PADDING_BYTES = 2**20


class Shards(PairSource):
    """The samples of tar files; nothing in them is decoded but UTF-8 and JSON, and pictures stay bytes.

    A sample is what has one key, wherever in the tar it stands. Only headers are read of samples that are left out. Of
    the columns only the text can be chosen: it is a key of the samples' ``.json``.
    """

    def __init__(self, paths: Sequence[Path], columns: Columns) -> None:
        columns.refuse(["image", "id"], str(paths[0]))
        self.paths, self.text = paths, columns.text

    def _read(self, position: int) -> Iterator[dict[str, Any]]:
        for read in islice(self._readers(), position, None):
            yield read()

    def _readers(self) -> Iterator[Callable[[], dict[str, Any]]]:
        """Yield for each pair a function that reads it; it is called before the next is asked for."""
        from freezealign.files import open_file

        for path in self.paths:
            damage: list[str] = []
            try:
                with open_file(path) as file:
                    for sample in iterate_samples(path, file, damage):
                        yield partial(self._pair, sample, path, file)
            except OSError as error:
                damage.append(f"{error}.")
            if damage:
                yield partial(unreadable, path.name, f"cannot read all of {path}: {' '.join(damage)}")

    def _pair(self, sample: Mapping[str, Any], path: Path, file: IO[bytes]) -> dict[str, Any]:
        key, member = sample["__key__"], find_image(sample)
        found = f"{path}: '{key}' has only {[suffix for suffix in sample if not suffix.startswith('__')]}, and"
        try:
            image = Unreadable(f"{found} no picture.") if member is None else _content(file, member)
            return make_pair(key, image, self._caption(sample, file, found))
        except (OSError, ValueError, RecursionError) as error:
            return unreadable(key, f"{path}: cannot read '{key}': {error}")

    def _caption(self, sample: Mapping[str, Any], file: IO[bytes], found: str) -> Any:
        if "txt" in sample and self.text == "text":
            return _text(file, sample["txt"]).strip()
        if "json" not in sample:
            return Unreadable(f"{found} no .txt or .json.")
        row = json.loads(_text(file, sample["json"]))
        if not isinstance(row, dict):
            raise ValueError("its .json is not an object.")
        if self.text not in row and self.text != "text":
            raise ValueError(f"there is no '{self.text}' in its .json, which has {list(row)}.")
        return row.get(self.text, row.get("caption"))


@dataclass(frozen=True)
class Member:
    """A file in a shard, by the bytes where its content lies; calling it opens the shard and reads it."""

    path: Path
    name: str
    offset: int
    size: int

    def __call__(self) -> bytes:
        """Return the content; raise an ``OSError`` or a ``ValueError`` if the shard is gone, or ends before it does."""
        with self.path.open("rb") as file:
            return _content(file, self)


def iterate_samples(path: Path, file: IO[bytes], damage: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the samples of a shard: ``__key__``, and for each suffix the :class:`Member`; nothing is read yet.

    Args:
        path: The shard.
        file: The same, open.
        damage: Gets the reasons for which files are left out.
    """
    from freezealign.images import IMAGE_SUFFIXES

    found = list(_members(path, file, damage))
    members = [member for member in found if re.fullmatch(r"[^.]+\..*", member.name.rpartition("/")[2], re.DOTALL)]
    parted = [_split(member.name) for member in members]
    whole = {key for key, suffix in parted if f".{suffix}" in IMAGE_SUFFIXES}
    dotted = {key for key, suffix in parted if Path(suffix).suffix in IMAGE_SUFFIXES} - whole
    samples: dict[str, dict[str, Any]] = {}
    for member, (first, _) in zip(members, parted):
        key, suffix = _split(member.name, last=first in dotted)  # "a.b.jpg" is no picture of "a"
        sample = samples.setdefault(key, {"__key__": key})
        if suffix in sample:
            damage.append(f"{member.name}: duplicate file name.")
        sample.setdefault(suffix, member)
    if found and not members:
        damage.append(f"none of its {len(found):,} files has a suffix, the first is '{found[0].name}'.")
    yield from samples.values()


def _split(name: str, last: bool = False) -> tuple[str, str]:
    """Return the key and the suffix of a file, parted at the first dot as webdataset does it, or at the last."""
    folder, slash, base = name.rpartition("/")
    key, _, suffix = base.rpartition(".") if last else base.partition(".")
    return folder + slash + key, suffix.lower()


def find_image(sample: Mapping[str, Any]) -> Member | None:
    """Return the first file of a sample whose suffix is an image's."""
    from freezealign.images import IMAGE_SUFFIXES

    return next((member for suffix, member in sample.items() if f".{suffix}" in IMAGE_SUFFIXES), None)


def _members(path: Path, file: IO[bytes], damage: list[str]) -> Iterator[Member]:
    """Yield the files of a shard; add to ``damage`` why there are no more of them."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for header in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # else they add up over the shard
                if header.isreg():
                    yield Member(path, header.name, header.offset_data, header.size)
            _check_end(file, archive.offset)
    except Exception as error:  # a damaged header makes tarfile raise whatever it happens to trip over
        damage.append(f"{error}; what follows is lost.")


def _content(file: IO[bytes], member: Member) -> bytes:
    end = file.seek(0, 2)
    if member.offset + member.size > end:
        raise ValueError(f"'{member.name}' is cut off.")
    file.seek(member.offset)
    return file.read(member.size)


def _text(file: IO[bytes], member: Member) -> str:
    return _content(file, member).decode("utf-8-sig", "surrogateescape")


def _check_end(file: IO[bytes], offset: int) -> None:
    """Raise if there is anything but the mark of the end, where ``tarfile`` stops at a bad header without a word."""
    file.seek(offset)
    rest = file.read(PADDING_BYTES)
    if rest.strip(b"\0"):
        raise ValueError(f"there is no valid header at byte {offset}")
    if len(rest) < END_MARK_BYTES:
        raise ValueError(f"it ends at byte {offset + len(rest)} without the mark of its end")
