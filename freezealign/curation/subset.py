"""The selected pairs themselves: samples picked out of webdataset shards."""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import IO, Any

from freezealign.data.sources import open_pairs
from freezealign.data.sources.shards import Member, Shards, iterate_samples
from freezealign.files import read_json, write_atomically, write_json_atomically

REQUEST = "subset.json"


def find_shards(shards: str | PathLike[str]) -> list[Path]:
    """Return the tar files of a folder or a pattern such as ``'{00000..00012}.tar'``.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If it is something else.
    """
    opened = open_pairs(shards)
    if not isinstance(opened, Shards):
        raise ValueError(f"{shards} are no webdataset shards.")
    return list(opened.paths)


def write_subset(
    shards: Sequence[Path], ids: Collection[str], folder: Path, show_progress_bar: bool = True
) -> dict[str, list[str]]:
    """Write of each shard the samples whose key is among ``ids`` as ``folder/SHARD``; their contents are not changed.

    Shards appear whole or not at all, and those that are there are not written again. A shard of which nothing is
    selected gives an empty file of the same name. A sample of which a part is cut off is left out.

    Args:
        shards: The tar files, as img2dataset writes them; their names differ.
        ids: The keys of the samples to take.
        folder: Where to write.
        show_progress_bar: Show progress if it takes longer than a second.

    Returns:
        For each damaged shard what could not be read of it, and why; ``subset.json`` also has it.

    Raises:
        ValueError: If selected samples are in several shards, or in none though none is damaged; if two shards have one
            name, or the folder holds another subset.
    """
    from tqdm.auto import tqdm

    wanted = set(ids)
    damage = _begin(shards, wanted, folder)
    for shard in tqdm(shards, desc="Picking samples", unit="shard", delay=1, disable=not show_progress_bar):
        if not (folder / shard.name).is_file() and (lost := _copy(shard, wanted, folder / shard.name)):
            damage[shard.name] = lost
            write_json_atomically(folder / REQUEST, {**read_json(folder / REQUEST), "damage": damage})
    _check(shards, wanted, folder, bool(damage))
    return damage


def keys_of(shard: Path) -> list[str]:
    """Return the keys of a shard's samples."""
    with shard.open("rb") as file:
        return [sample["__key__"] for sample in iterate_samples(shard, file, [])]


def _begin(shards: Sequence[Path], wanted: Collection[str], folder: Path) -> dict[str, list[str]]:
    """Start a subset, or go on with the same; return the damage that is known."""
    if len({shard.name for shard in shards}) < len(shards):
        raise ValueError("the shards of a subset keep their names, and two of these have the same.")
    digest = hashlib.sha256("\n".join(sorted(wanted)).encode("utf-8", "surrogatepass")).hexdigest()
    request = {"ids": digest, "shards": [[shard.name, shard.stat().st_size] for shard in shards]}
    if not (folder / REQUEST).is_file():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no subset; choose another folder.")
        write_json_atomically(folder / REQUEST, {**request, "damage": {}})
    begun: dict[str, Any] = read_json(folder / REQUEST)
    if {key: begun.get(key) for key in request} != request:
        raise ValueError(
            f"{folder} holds a subset of other samples or other shards; delete it or choose another folder."
        )
    return dict(begun["damage"])


def _check(shards: Sequence[Path], wanted: set[str], folder: Path, damaged: bool) -> None:
    counts = Counter(key for shard in shards for key in keys_of(folder / shard.name))
    if twice := [key for key, count in counts.items() if count > 1]:
        raise ValueError(f"{len(twice):,} samples are in more than one shard, the first is '{twice[0]}'.")
    if (missing := sorted(wanted - set(counts))) and not damaged:
        raise ValueError(
            f"{len(missing):,} of {len(wanted):,} selected samples are in none of the {len(shards)} shards, the first "
            f"is '{missing[0]}'; the pool was made of others. Those that were found are in {folder}."
        )


def _copy(shard: Path, wanted: Collection[str], target: Path) -> list[str]:
    """Write the wanted samples of a shard; return what is wrong with it."""
    lost: list[str] = []
    with shard.open("rb") as file:
        samples = list(iterate_samples(shard, file, lost))
    if lost and samples:
        cut = samples.pop()  # what comes before damage may lack some of its files
        lost.append(f"'{cut['__key__']}' may be incomplete and is left out.")
    chosen = [sample for sample in samples if sample["__key__"] in wanted]
    members = [member for sample in chosen for member in sample.values() if isinstance(member, Member)]

    def write(file: IO[bytes]) -> None:
        with tarfile.open(fileobj=file, mode="w") as archive, shard.open("rb") as source:
            for member in members:
                entry = tarfile.TarInfo(member.name)
                entry.size = member.size
                source.seek(member.offset)
                archive.addfile(entry, source)

    write_atomically(target, write)
    return lost
