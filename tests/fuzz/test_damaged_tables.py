"""Tables of captions: CSV, TSV, JSON lines, each also compressed, and Parquet; and folders of pictures with one."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import example, given
from hypothesis import strategies as st
from judge import driver, judge, require, require_equal
from spoil import (
    FOLDER,
    ODD,
    Edit,
    Link,
    damaged_bytes,
    damaged_folder,
    damaged_json,
    equal_bytes,
    in_short,
    write_folder,
)
from valid import TEXTS, accounted, picture

from freezealign.data.sources import open_pairs
from freezealign.images import read_image
from freezealign.inputs import InputError

ROWS = [{"id": f"i{n}", "image": f"{n % 3}.png", "text": text} for n, text in enumerate(TEXTS)]
PICTURES = {f"{n}.png": picture(40 * n) for n in range(3)}
PLAIN = (".csv", ".tsv", ".jsonl")


def written(suffix: str, rows: list[dict[str, Any]] = ROWS) -> bytes:
    """Return a table as a file."""
    if suffix == ".parquet":
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), stream, row_group_size=2, write_page_checksum=True)
        return stream.getvalue()
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


TABLES = {suffix: written(suffix) for suffix in (*PLAIN, ".parquet")}
TABLES |= {f"{suffix}.gz": gzip.compress(TABLES[suffix], mtime=0) for suffix in PLAIN}


@st.composite
def damaged_tables(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return a suffix and a damaged table."""
    suffix = draw(st.sampled_from(sorted(TABLES)))
    if suffix == ".jsonl" and draw(st.booleans()):
        lines = TABLES[suffix].splitlines(keepends=True)
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] = draw(damaged_json(ROWS[at], None)) + b"\n"
        return suffix, b"".join(lines)
    if suffix.endswith(".gz") and draw(st.booleans()):  # damage that compression hides
        return suffix, gzip.compress(draw(damaged_bytes(TABLES[suffix.removesuffix(".gz")])), mtime=0)
    return suffix, draw(damaged_bytes(TABLES[suffix]))


def as_shown(pair: dict[str, Any]) -> tuple[Any, ...]:
    """Return a pair as what can be compared: the picture by its colour, or why it cannot be read."""
    try:
        return pair["id"], read_image(pair["image"]).getpixel((0, 0)), pair["text"]
    except InputError as error:
        return pair["id"], "bad", str(error)


def rows_before(suffix: str, content: bytes) -> int:
    """Return how many rows of a table of text lie whole before its first damage."""
    valid = TABLES[suffix]
    return max(0, len(re.findall(rb"\r\n|\n", valid[: equal_bytes(valid, content)])) - (suffix != ".jsonl"))


def check_rows(suffix: str, content: bytes, pairs: list[dict[str, Any]], right: list[tuple]) -> None:
    """Require that rows which the damage does not touch are as they were, and that what is lost is told."""
    found = [as_shown(pair) for pair in pairs]
    if suffix in PLAIN:
        before = rows_before(suffix, content)
        require_equal(found[:before], right[:before], "the rows before the damage")
    elif found != right:  # these have checksums
        told = any(colour == "bad" for _, colour, _ in found) or content[-8:] != TABLES[suffix][-8:]
        require(told, f"the checksums do not hold, the rows are others, and nothing says so: {found}")
    if suffix != ".jsonl":
        return
    lines = [line for line in re.split(rb"\r\n|\r|\n", content.removeprefix(b"\xef\xbb\xbf")) if line.strip()]
    require_equal(len(found), len(lines), "the rows of as many lines")
    for line, pair in zip(lines, found):
        try:
            row = json.loads(line.decode(errors="surrogateescape"))
        except (ValueError, RecursionError):
            require(pair[1] == "bad", f"line {line[:80]!r} is no JSON, and gave {pair}")
            continue
        if pair[1] != "bad":
            require_equal(pair[2] or None, row.get("text") or None, "the caption")
            require(
                pair[1] == as_shown({"id": "", "image": PICTURES[Path(row["image"]).name], "text": ""})[1], "picture"
            )


def open_table(folder: Path, suffix: str, content: bytes) -> Any:
    """Write a table and its pictures, and open it."""
    write_folder(folder, PICTURES, {f"table{suffix}": content})
    return open_pairs(folder / f"table{suffix}")


@driver(20)
@given(damaged_tables())
@example((".parquet", TABLES[".parquet"].replace(b"a green car", b"a gremn car", 1)))
def test_a_damaged_table(damaged):
    suffix, content = damaged

    def run(folder):
        right = [(row["id"], (40 * (n % 3), 40, 90), row["text"]) for n, row in enumerate(ROWS)]
        source = open_table(folder, suffix, content)
        pairs = list(source)
        check_rows(suffix, content, pairs, right)
        require_equal([as_shown(p) for p in source.iter_from(2)], [as_shown(p) for p in pairs[2:]], "from row 2 on")
        store = accounted(folder / f"table{suffix}", len(pairs))
        require(store is None or set(store.ids) <= {pair["id"] for pair in pairs}, "an item from nowhere")

    judge("tables", damaged, run)


@driver(8)
@given(
    column=st.sampled_from(["id", "image", "text"]), values=st.lists(st.sampled_from(ODD[5:]), min_size=1, max_size=3)
)
def test_odd_columns_in_parquet(column, values):
    rows = [{**row, column: value} for row, value in zip(ROWS, values)]
    try:
        content = written(".parquet", rows)
    except (pa.ArrowException, UnicodeEncodeError, TypeError, OverflowError):
        return

    def run(folder):
        pairs = list(open_table(folder, ".parquet", content))
        require_equal(len(pairs), len(rows), "the rows")
        accounted(folder / "table.parquet", len(pairs))

    judge("columns", (column, values), run)


# Folders of pictures

CAPTIONS = {f"{n}.txt": text.encode() for n, text in enumerate(TEXTS[:3])}
LISTED = {f"sub/{n}.png": picture(40 * n) for n in range(3)}
ROWS_OF_FOLDER = [{"file_name": f"sub/{n}.png", "text": TEXTS[n]} for n in range(3)]
FOLDERS = {
    "txt": {**PICTURES, **CAPTIONS},
    "csv": {**LISTED, "metadata.csv": written(".csv", ROWS_OF_FOLDER)},
    "jsonl": {**LISTED, "metadata.jsonl": written(".jsonl", ROWS_OF_FOLDER)},
    "parquet": {**LISTED, "metadata.parquet": written(".parquet", ROWS_OF_FOLDER)},
}
NAMES = [
    "\udcff.png",
    "a\nb.png",
    " .png",
    "🙂.png",
    "-x.png",
    "a" * 250 + ".png",
    "sub/.png",
    "x.PNG",
    "a.b.png",
    "\\.png",
]


@st.composite
def damaged_picture_folders(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Return the kind of a folder, and what lies in it instead."""
    kind = draw(st.sampled_from(sorted(FOLDERS)))
    damage = dict(draw(damaged_folder(FOLDERS[kind])))
    if draw(st.booleans()):
        damage[draw(st.sampled_from(NAMES))] = draw(
            st.sampled_from([picture(200), b"", FOLDER, Link("."), Link("0.png")])
        )
    return kind, damage


@driver(20)
@given(damaged_picture_folders())
@example(("parquet", {"metadata.parquet": Edit(b"PAR1\x15\x04", b"PAR1\x15\x24")}))
@example(("txt", {"2.txt": Link("/dev/zero")}))
def test_a_damaged_folder_of_pictures(damaged):
    kind, damage = damaged

    def run(folder):
        pairs = list(open_pairs(write_folder(folder, FOLDERS[kind], damage)))
        found = {pair["id"].removeprefix("sub/"): as_shown(pair) for pair in pairs}
        require_equal(len(found), len(pairs), "an id is there twice; ids")
        table_is_whole = not any(name.startswith("metadata") for name in damage)
        for n in range(3):
            if table_is_whole and not any(Path(name).stem == str(n) for name in damage):
                _, *shown = found[f"{n}.png"]
                require_equal(shown, [(40 * n, 40, 90), [TEXTS[n]]], f"pair {n}, which is not damaged,")
        accounted(folder, len(pairs))

    judge("picture folders", (kind, in_short(FOLDERS[kind], damage)), run)
