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
from freezealign.files import as_line, claim, exclusive, open_file, write_atomically, write_json_atomically
from freezealign.forms import formed


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
        folder: Where to write; new, or of the same subset: after a kill, run it again and it goes on.
        show_progress_bar: Show progress if it takes longer than a second.

    Returns:
        For each damaged shard what could not be read of it, and why; ``subset.json`` also has it.

    Raises:
        FileExistsError: If the folder holds something else.
        RuntimeError: If another process is writing to it.
        ValueError: If selected samples are in several shards, or in none though none is damaged; if two shards have one
            name, or the folder holds another subset.
    """
    from tqdm.auto import tqdm

    if len({shard.name for shard in shards}) < len(shards):
        raise ValueError("the shards of a subset keep their names, and two of these have the same.")
    wanted, path = set(ids), folder / "subset.json"
    digest = hashlib.sha256("\n".join(as_line(name) for name in sorted(wanted)).encode()).hexdigest()
    request = {"ids": digest, "shards": [[shard.name, shard.stat().st_size] for shard in shards]}
    with exclusive(folder):
        begun = formed(path, claim(path, request, "subset", damage={}), {"damage": dict[str, list[str]]})
        damage: dict[str, list[str]] = begun["damage"]
        for shard in tqdm(shards, desc="Picking samples", unit="shard", delay=1, disable=not show_progress_bar):
            if (folder / shard.name).is_file():
                continue
            samples, lost = _samples(shard)
            if lost:  # told before the shard is there, which is not read again
                damage[shard.name] = lost
                write_json_atomically(path, begun)
            _copy(shard, [sample for sample in samples if sample["__key__"] in wanted], folder / shard.name)
    counts = Counter(key for shard in shards for key in keys_of(folder / shard.name))
    if twice := [key for key, count in counts.items() if count > 1]:
        raise ValueError(f"{len(twice):,} samples are in more than one shard, the first is '{twice[0]}'.")
    if (missing := sorted(wanted - set(counts))) and not damage:
        raise ValueError(
            f"{len(missing):,} of {len(wanted):,} selected samples are in none of the {len(shards)} shards, the first "
            f"is '{missing[0]}'; the pool was made of others. Those that were found are in {folder}."
        )
    return damage


def keys_of(shard: Path) -> list[str]:
    """Return the keys of a shard's samples."""
    return [sample["__key__"] for sample in _samples(shard)[0]]


def _samples(shard: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the samples of a shard that are whole, and what is wrong with it."""
    lost: list[str] = []
    with open_file(shard) as file:
        samples = list(iterate_samples(shard, file, lost))
    if lost and samples:
        cut = samples.pop()  # what comes before damage may lack some of its files
        lost.append(f"'{cut['__key__']}' may be incomplete and is left out.")
    return samples, lost


def _copy(shard: Path, samples: Sequence[dict[str, Any]], target: Path) -> None:
    members = [member for sample in samples for member in sample.values() if isinstance(member, Member)]

    def write(file: IO[bytes]) -> None:
        with tarfile.open(fileobj=file, mode="w") as archive, open_file(shard) as source:
            for member in members:
                entry = tarfile.TarInfo(member.name)
                entry.size = member.size
                source.seek(member.offset)
                archive.addfile(entry, source)

    write_atomically(target, write)
