"""What the tests of sources write, and how they compare what is read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from freezealign.data.sources import open_pairs
from freezealign.images import read_image
from freezealign.inputs import InputError

FORMS = r"a folder of pictures with captions, a \.csv"
same_folder = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture(red: int) -> bytes:
    """A picture that is known again by its red channel; a PNG, whatever the name of its file."""
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(content, "PNG")
    return content.getvalue()


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_table(folder: Path, suffix: str, rows: list[dict]) -> Path:
    path, names = folder / f"table{suffix}", list(rows[0])
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
        return path
    text = io.StringIO(newline="")
    if suffix.startswith(".jsonl"):
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(text, names, delimiter="\t" if suffix.startswith(".tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    return path


def write_shard(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def sample(key: str, red: int, caption: str | None) -> dict[str, bytes]:
    """What img2dataset writes of one row: it leaves out the .txt where there is no caption."""
    meta = json.dumps({"caption": caption, "url": "http://x/y.jpg", "key": key, "status": "success"})
    text = {} if caption is None else {f"{key}.txt": caption.encode()}
    return {f"{key}.jpg": picture(red), f"{key}.json": meta.encode(), **text}


def write_img2dataset(folder: Path, shards: int = 3, samples: int = 2) -> Path:
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for index in range(samples):
            members |= sample(f"{shard:05d}{index:04d}", 10 * shard + index, f"caption {shard} {index}")
        write_shard(folder / f"{shard:05d}.tar", members)
        pq.write_table(pa.table({"url": ["http://x"], "caption": ["no"]}), folder / f"{shard:05d}.parquet")
        write(folder / f"{shard:05d}_stats.json", "{}")
    return folder


def make_folder(root: Path) -> Path:
    """Four pictures in three folders: several captions, one caption, none, and none that is not blank."""
    for name in ("b/two.PNG", "a.jpg", "b/c/one.png", "z.png"):
        write(root / name, picture(9))
    write(root / "a.txt", "\ufeffein Äpfelchen\r\n\r\n  an apple \n")
    write(root / "b/c/one.txt", "one")
    write(root / "z.txt", "\n \n")
    write(root / "notes.md", "no picture")
    return root


def make_source(kind: str, folder: Path):
    """Seven pairs, or nearly so, of each kind."""
    folder.mkdir(exist_ok=True)
    rows = [{"image": f"{n}.png", "text": f"text {n}", "id": f"i{n}"} for n in range(7)]
    if kind == "folder":
        for row in rows:
            write(folder / row["image"], picture(1))
        return open_pairs(folder)
    if kind == "metadata":
        write(folder / "metadata.csv", "file_name,text\n" + "".join(f"{n}.png,x\n" for n in range(6)) + "a,b,c\n")
        return open_pairs(folder)
    if kind == "shards":
        write_img2dataset(folder)
        (folder / "00001.tar").write_bytes((folder / "00001.tar").read_bytes()[:3000])
        return open_pairs(folder)
    if kind == "parquets":
        pq.write_table(pa.Table.from_pylist(rows[:3]), folder / "a.parquet", row_group_size=2)
        pq.write_table(pa.Table.from_pylist(rows[3:]), folder / "b.parquet", row_group_size=3)
        return open_pairs(folder)
    return open_pairs(write_table(folder, kind, rows))


KINDS = ["folder", "metadata", "shards", "parquets", ".csv", ".tsv.gz", ".jsonl"]


def shown(pairs) -> list[tuple]:
    """Pairs as what can be compared: an image that raises as the reason it gives."""
    return [(pair["id"], reason(pair) if callable(pair["image"]) else pair["image"], pair["text"]) for pair in pairs]


def reason(pair) -> str:
    with pytest.raises(InputError) as error:
        read_image(pair["image"])
    return str(error.value)


def red(pair) -> int:
    return int(np.asarray(read_image(pair["image"]))[0, 0, 0])


def texts(pairs) -> list:
    return [pair["text"] for pair in pairs]


def ids(pairs) -> list[str]:
    return [pair["id"] for pair in pairs]
