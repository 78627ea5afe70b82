"""The selected pairs themselves: samples picked out of webdataset shards."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import IO

from freezealign.data.sources import open_pairs
from freezealign.data.sources.shards import Member, Shards, iterate_samples
from freezealign.files import write_atomically


def write_subset(
    shards: str | PathLike[str] | Sequence[Path],
    ids: Collection[str],
    folder: Path,
    show_progress_bar: bool = True,
) -> list[str]:
    """Write of each shard the samples whose key is among ``ids`` as ``folder/SHARD``, byte for byte.

    Shards appear whole or not at all, and those that are there are not written again. A shard of which nothing is
    selected gives an empty file of the same name.

    Args:
        shards: The tar files, as img2dataset writes them, or a folder of them or a pattern such as
            ``'{00000..00012}.tar'``; their names differ.
        ids: The keys of the samples to take.
        folder: Where to write.
        show_progress_bar: Show progress if it takes longer than a second.

    Returns:
        What could not be read of the shards, and why.

    Raises:
        ValueError: If some of ``ids`` are in no shard, or two shards have one name.
    """
    from tqdm.auto import tqdm

    shards = _paths(shards)
    if len({shard.name for shard in shards}) < len(shards):
        raise ValueError("the shards of a subset keep their names, and two of these have the same.")
    wanted, damage = set(ids), list[str]()
    for shard in tqdm(shards, desc="Picking samples", unit="shard", delay=1, disable=not show_progress_bar):
        if not (folder / shard.name).is_file():
            _copy(shard, wanted, folder / shard.name, damage)
    found = {key for shard in shards for key in keys_of(folder / shard.name)}
    if missing := sorted(wanted - found):
        raise ValueError(
            f"{len(missing):,} of {len(wanted):,} selected samples are in none of the {len(shards)} shards, the first "
            f"is '{missing[0]}'. {' '.join(damage[:3])} Delete {folder} and pass the shards that the pool was made of."
        )
    return damage


def _paths(shards: str | PathLike[str] | Sequence[Path]) -> Sequence[Path]:
    if not isinstance(shards, (str, PathLike)):
        return shards
    opened = open_pairs(shards)
    if not isinstance(opened, Shards):
        raise ValueError(f"{shards} are no webdataset shards.")
    return opened.paths


def keys_of(shard: Path) -> list[str]:
    """Return the keys of a shard's samples."""
    with shard.open("rb") as file:
        return [sample["__key__"] for sample in iterate_samples(shard, file, [])]


def _copy(shard: Path, wanted: Collection[str], target: Path, damage: list[str]) -> None:
    lost: list[str] = []
    with shard.open("rb") as file:
        samples = [sample for sample in iterate_samples(shard, file, lost) if sample["__key__"] in wanted]
    damage += [f"{shard}: {reason}" for reason in lost]

    def write(target_file: IO[bytes]) -> None:
        with tarfile.open(fileobj=target_file, mode="w") as archive, shard.open("rb") as source:
            for member in (member for sample in samples for member in sample.values() if isinstance(member, Member)):
                entry = tarfile.TarInfo(member.name)
                entry.size = member.size
                source.seek(member.offset)
                archive.addfile(entry, source)

    write_atomically(target, write)
