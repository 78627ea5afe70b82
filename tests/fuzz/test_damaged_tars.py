"""webdataset shards: damaged tar files, and odd members in whole ones."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from judge import driver, judge, require, require_equal
from spoil import ODD, WORDS, damaged_bytes, equal_bytes
from valid import TEXTS, accounted, picture, tar

from freezealign.data.sources import open_pairs

KINDS = [
    tarfile.REGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    b"S",
    b"?",
]


def sample(number: int) -> dict[str, bytes]:
    """The files of a sample."""
    meta = json.dumps({"caption": TEXTS[number], "key": str(number)}).encode()
    text = {f"{number:04}.txt": TEXTS[number].encode()} if number % 2 else {}
    return {f"{number:04}.png": picture(40 * number), f"{number:04}.json": meta, **text}


SAMPLES = [list(sample(number).items()) for number in range(4)]
VALID = tar(member for own in SAMPLES for member in own)
with tarfile.open(fileobj=io.BytesIO(VALID)) as _archive:
    ENDS = {member.name: member.offset_data + member.size for member in _archive}


def as_shown(pair: dict[str, Any]) -> tuple[Any, ...]:
    """Return a pair as what can be compared."""
    return pair["id"], pair["image"] if isinstance(pair["image"], bytes) else type(pair["image"]).__name__, pair["text"]


RIGHT = [(f"{n:04}", picture(40 * n), TEXTS[n]) for n in range(4)]


@driver(20)
@given(damaged_bytes(VALID))
def test_a_damaged_shard(content):
    same = equal_bytes(VALID, content)

    def run(folder):
        (folder / "0.tar").write_bytes(content)
        source = open_pairs(folder / "0.tar")
        pairs = list(source)
        whole = sum(all(end <= same for name, end in ENDS.items() if name.startswith(f"{n:04}")) for n in range(4))
        whole -= whole > 0 and same < len(VALID) - 1024  # the next header tells that a sample is complete
        require_equal([as_shown(pair) for pair in pairs[:whole]], RIGHT[:whole], "the samples before the damage")
        is_told = any(callable(pair["image"]) for pair in pairs)
        is_empty = not content.strip(b"\0")  # as a shard of no samples is
        require(len(pairs) >= 4 or is_told or is_empty, "samples are gone without a word")
        require_equal([p["id"] for p in source.iter_from(1)], [p["id"] for p in pairs[1:]], "from sample 1 on")
        accounted(folder / "0.tar", len(pairs))

    judge("tars", content, run)


NAMES = [
    *WORDS[2:],
    "0000.png",
    "0001.txt",
    "../../x.png",
    "/x.png",
    "x",
    ".png",
    "a.b.c.png",
    "0000/",
    "a" * 300 + ".png",
    "x.json",
]
FIELDS = {
    "name": st.sampled_from(NAMES).filter(lambda name: "\ud800" not in name),
    "type": st.sampled_from(KINDS),
    "linkname": st.sampled_from(["0000.png", "../x", "/etc/passwd", ""]),
    "mode": st.sampled_from([0, 0o7777]),
    "mtime": st.sampled_from([0, 2**33, -1.5]),
    "pax_headers": st.sampled_from(
        [
            {"size": "9" * 30},
            {"size": "-1"},
            {"path": "0000.png"},
            {"GNU.sparse.map": "0,1,x"},
            {"GNU.sparse.size": "9" * 12, "GNU.sparse.map": "0,9"},
            {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
            {"x": "y" * 10_000},
        ]
    ),
}
CONTENTS = st.sampled_from(
    [b"", b"[]", b"{", b"[" * 100_000, b"\xff", picture(80), *(json.dumps({"text": v}).encode() for v in ODD)]
)


@driver(20)
@given(
    at=st.integers(0, len(SAMPLES)),
    fields=st.fixed_dictionaries({"name": FIELDS["name"]}, optional={k: v for k, v in FIELDS.items() if k != "name"}),
    content=CONTENTS,
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
)
def test_an_odd_member(at, fields, content, form):
    try:
        odd = (fields, content)
        shard = tar((member for own in [*SAMPLES[:at], [odd], *SAMPLES[at:]] for member in own), form)
    except (ValueError, OverflowError, UnicodeEncodeError):  # this form cannot say it
        return

    def run(folder: Path):
        (folder / "0.tar").write_bytes(shard)
        pairs = list(open_pairs(folder / "0.tar"))
        is_told = any(callable(pair["image"]) for pair in pairs)
        found = [as_shown(pair) for pair in pairs]
        names = (fields["name"], str(fields.get("pax_headers", {}).get("path")))
        for right in RIGHT:
            require(is_told or right in found or right[0] in "".join(names), f"{right} is lost among {found}")
        require([path.name for path in folder.iterdir()] == ["0.tar"], "something was unpacked")
        accounted(folder / "0.tar", len(pairs))

    judge("tar members", (at, fields, content[:80], form), run)
