"""The report of a suite: all models evaluated in a folder, as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freezealign.evaluation.base import prefixed
from freezealign.evaluation.suites.suite import Suite, Task
from freezealign.files import read_object, write_atomically
from freezealign.forms import formed
from freezealign.markdown import markdown_table, score_cell
from freezealign.words import printable

RESULT = "result.json"
IDENTITY = {"task_identity": str, "model_identity": str}
SCORED = {"languages": list, "columns": list, "results": dict}
Records = dict[str, dict[str, Any]]
"""From a model's name to the record of a task."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .75rem; text-align: left; white-space: nowrap; }
img { max-width: 100%; }
h2 { border-top: 2px solid #eee; padding-top: 1rem; }
"""


def write_report(suite: Suite, folder: Path) -> None:
    """Write ``report.md`` and ``report.html`` on what is in ``folder``: one sub-folder a model, in it one a task.

    The HTML holds its pictures, so that the one file can be passed on.
    """
    markdown = to_markdown(suite, folder)
    for name, text in {"report.md": markdown, "report.html": to_html(suite.title, markdown, folder)}.items():
        write_atomically(folder / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]


def to_markdown(suite: Suite, folder: Path) -> str:
    """Return the report as Markdown; pictures are links relative to ``folder``."""
    found = [(task, _records(task, folder)) for task in suite.tasks]
    models = sorted({model for _, records in found for model in records})
    rows = [row for task, records in found for row in _overview_rows(task, records, models)]
    parts = [f"# {suite.title}", suite.about.strip(), markdown_table(["task", "metric", *models], rows)]
    for task, records in found:
        parts += [f"## {task.name}", task.about.strip(), *_section(task, records, folder)]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_html(title: str, markdown: str, folder: Path) -> str:
    """Return Markdown as a page that needs no other file; what a suite's author links to elsewhere stays a link."""
    from html import escape

    from markdown_it import MarkdownIt

    def embedded(match: re.Match[str]) -> str:
        path = folder / match[0]
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.is_file() else match[0]

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = re.sub(r'(?<=<img src=")[^"]+\.png(?=")', embedded, body)
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html><head>{head}</head>\n<body>\n{body}</body></html>\n"


def read_record(path: Path) -> dict[str, Any]:
    """Return what a ``result.json`` holds; a ``ValueError`` says what is damaged."""
    try:
        record = read_object(path, IDENTITY)
        formed(path, record, {"error": str} if "error" in record else SCORED)
        if "error" not in record:
            _check_scores(path, record)
    except ValueError as error:
        raise ValueError(f"{error} Remove it, and the task is run again.") from None
    return record


def _check_scores(path: Path, record: dict[str, Any]) -> None:
    """Raise a ``ValueError`` unless every score that the report shows is there, and is one."""
    results, languages, columns = record["results"], record["languages"], record["columns"]
    shown = [prefixed(language, column) for language in languages for column in columns]
    absent = [key for key in ("protocol", *shown) if key not in results]
    kinds: dict[str, Any] = {**dict.fromkeys(results, (int, float, type(None))), "protocol": str, "unit": str}
    kinds |= {key: list for key in results if key.endswith("class_iou")}
    strange = [key for key, value in results.items() if not isinstance(value, kinds[key])]
    if not shown or absent or strange:
        raise ValueError(f"{path}: its scores are damaged: {absent[:3]} missing, {strange[:3]} of another kind.")
    skipped = record.get("skipped", [])
    keys = {"index", "reason"}
    if not isinstance(skipped, list) or any(not isinstance(e, dict) or set(e) - {"item"} != keys for e in skipped):
        raise ValueError(f"{path}: 'skipped' is damaged.")


def left_out_line(record: dict[str, Any]) -> str:
    """Return how much of a task's data was left out and what was wrong with the first; all are in its ``skipped``."""
    if not (skipped := record.get("skipped")):
        return ""
    items, first = sum(bool(entry.get("item")) for entry in skipped), skipped[0]
    others = f", and {items} captions of others" * bool(items)
    what = f", {first['item']}" if first.get("item") else ""
    told = f"Left out {len(skipped) - items}{others}; the first is item {first['index']}{what}: {first['reason']}"
    return printable(told)  # of data, which may put anything into a message


def _records(task: Task, folder: Path) -> Records:
    """Return what each model found for a task as it stands in the suite now."""
    paths = sorted(folder.glob(f"*/{task.name}/{RESULT}"))
    records = {path.parent.parent.name: read_record(path) for path in paths}
    return {model: record for model, record in records.items() if record["task_identity"] == task.identity}


def _overview_rows(task: Task, records: Records, models: Sequence[str]) -> list[list[str]]:
    """Return the rows that put models side by side: a task's primary metric, and its mean over other languages."""
    scored = {model: record for model, record in records.items() if "results" in record}
    cells = dict.fromkeys(records, "not run")
    cells |= {model: score_cell(record["results"], _keys(record)[0]) for model, record in scored.items()}
    first = next(iter(scored.values()), None)
    rows = [[task.name, _keys(first)[0] if first else "", *(cells.get(model, "") for model in models)]]
    if first and len(first["languages"]) > 1:
        means = {model: _number(_mean_of_others(record, record["columns"][0])) for model, record in scored.items()}
        words = f"mean of {len(first['languages']) - 1} other languages"
        rows.append(["", words, *(means.get(model, "") for model in models)])
    return rows


def _keys(record: dict[str, Any]) -> list[str]:
    """Return the keys of the primary metric, a language each."""
    return [prefixed(language, record["columns"][0]) for language in record["languages"]]


def _mean_of_others(record: dict[str, Any], column: str) -> float | None:
    """Return the mean of a metric over all languages but the first, ``None`` where one has no score."""
    others = [record["results"][prefixed(language, column)] for language in record["languages"][1:]]
    return None if not others or None in others else sum(others) / len(others)


def _number(value: float | None, sign: str = "") -> str:
    return "none" if value is None else f"{value:{sign}.3f}"


def _section(task: Task, records: Records, folder: Path) -> list[str]:
    """Return the parts of a task: its protocol, each model's table and pictures, and what could not be run."""
    parts: list[str] = []
    for model, record in records.items():
        parts.append(f"### {model}")
        if "error" in record:
            parts.append(f"Not run: {printable(record['error'])}")
            continue
        pictures = sorted((folder / model / task.name).glob("*.png"))
        parts += [
            f"Protocol: {record['results']['protocol']}.",
            left_out_line(record),
            _languages_table(record),
            _budget_table(record),
            *(f"![{task.name}, {model}, {path.stem}]({path.relative_to(folder).as_posix()})" for path in pictures),
        ]
    return parts or ["Not run yet."]


def _languages_table(record: dict[str, Any]) -> str:
    """Return the scores: a row a language, the mean of the others and their gap to the first."""
    results, languages, columns = record["results"], record["languages"], record["columns"]
    several, first = len(languages) > 1, languages[0]
    counts = [key for key in ("n_images", "n_texts", "n_classes", "n") if prefixed(first, key) in results]
    rows = []
    for language in languages:
        values = [str(results.get(prefixed(language, key), "")) for key in counts]
        rows.append([language or "all", *values, *(score_cell(results, prefixed(language, key)) for key in columns)])
    blank = [""] * len(counts)
    if several:
        pairs = [(_mean_of_others(record, key), results[prefixed(first, key)]) for key in columns]
        gaps = [None if None in (mean, own) else mean - own for mean, own in pairs]
        rows.append([f"mean of the {len(languages) - 1} others", *blank, *(_number(mean) for mean, _ in pairs)])
        rows.append([f"gap to {first}", *blank, *(_number(gap, "+") for gap in gaps)])
    chances = [results.get(prefixed(first, f"{key}_chance")) for key in columns]
    rows.append(["chance", *blank, *("" if chance is None else _number(chance) for chance in chances)])
    return markdown_table(["language" if several else "", *counts, *columns], rows)


def _budget_table(record: dict[str, Any]) -> str:
    """Return the scores by token budget, of an evaluation that has them."""
    results, column, rows = record["results"], record["columns"][0], []
    for language in record["languages"]:
        pattern = re.compile(rf"{re.escape(prefixed(language, 'at_'))}(\d+)_{re.escape(column)}")
        for budget in sorted(int(match[1]) for key in results if (match := pattern.fullmatch(key))):
            at = prefixed(language, f"at_{budget}")
            cut = f"{results.get(f'{at}_n_cut')} of {results.get(f'{at}_n_texts')}"
            rows.append([language or "all", str(budget), cut, score_cell(results, f"{at}_{column}")])
    return markdown_table(["language", results.get("unit", ""), "captions cut", column], rows) if rows else ""
