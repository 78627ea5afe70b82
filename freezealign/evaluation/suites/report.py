"""The report of a suite: all models evaluated in a folder, as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freezealign.evaluation.base import prefixed
from freezealign.evaluation.suites.suite import Suite, Task
from freezealign.files import read_object
from freezealign.markdown import markdown_table, score_cell

RESULT = "result.json"
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
    (folder / "report.md").write_text(markdown, encoding="utf-8")
    (folder / "report.html").write_text(to_html(suite.title, markdown, folder), encoding="utf-8")


def to_markdown(suite: Suite, folder: Path) -> str:
    """Return the report as Markdown; pictures are links relative to ``folder``."""
    found = [(task, _records(task, folder)) for task in suite.tasks]
    parts = [f"# {suite.title}", suite.about.strip(), _overview(found)]
    for task, records in found:
        parts += [f"## {task.name}", task.about.strip(), *_section(task, records, folder)]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_html(title: str, markdown: str, folder: Path) -> str:
    """Return Markdown as a page that needs no other file."""
    from html import escape

    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = re.sub(r'(?<=<img src=")[^"]+\.png(?=")', lambda match: _embedded(match[0], folder), body)
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html><head>{head}</head>\n<body>\n{body}</body></html>\n"


def _embedded(link: str, folder: Path) -> str:
    """Return a picture itself in place of a link to it; what a suite's author links to elsewhere stays a link."""
    path = folder / link
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.is_file() else link


def read_record(path: Path) -> dict[str, Any]:
    """Return what a ``result.json`` holds.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return read_object(path, ["task_identity", "model_identity"])
    except ValueError as error:
        raise ValueError(f"{error} Remove it, and the task is run again.") from None


def _records(task: Task, folder: Path) -> Records:
    """Return what each model found for a task as it stands in the suite now."""
    paths = sorted(folder.glob(f"*/{task.name}/{RESULT}"))
    records = {path.parent.parent.name: read_record(path) for path in paths}
    return {model: record for model, record in records.items() if record["task_identity"] == task.identity}


def _overview(found: Sequence[tuple[Task, Records]]) -> str:
    """Return the table that puts models side by side: each task's primary metric."""
    models = sorted({model for _, records in found for model in records})
    rows = []
    for task, records in found:
        scored = {model: record for model, record in records.items() if "results" in record}
        if not scored:
            rows.append([task.name, "", *(_absent(records.get(model)) for model in models)])
            continue
        first = next(iter(scored.values()))
        metric = prefixed(first["languages"][0], first["columns"][0])
        rows.append([task.name, metric, *(_primary(records.get(model)) for model in models)])
        if len(first["languages"]) > 1:
            means = {model: _mean_of_others(record, first["columns"][0]) for model, record in scored.items()}
            cells = [f"{means[model]:.3f}" if model in means else "" for model in models]
            rows.append(["", f"mean of {len(first['languages']) - 1} other languages", *cells])
    return markdown_table(["task", "metric", *models], rows)


def _primary(record: dict[str, Any] | None) -> str:
    if record is None or "error" in record:
        return _absent(record)
    return score_cell(record["results"], prefixed(record["languages"][0], record["columns"][0]))


def _absent(record: dict[str, Any] | None) -> str:
    return "not run" if record else ""


def _mean_of_others(record: dict[str, Any], column: str) -> float:
    """Return the mean of a metric over all languages but the first."""
    others = [record["results"][prefixed(language, column)] for language in record["languages"][1:]]
    return sum(others) / len(others)


def _section(task: Task, records: Records, folder: Path) -> list[str]:
    """Return the parts of a task: its protocol, each model's table and pictures, and what could not be run."""
    parts: list[str] = []
    for model, record in records.items():
        heading = f"### {model}"
        if "error" in record:
            parts += [heading, f"Not run: {record['error']}"]
            continue
        results = record["results"]
        pictures = sorted((folder / model / task.name).glob("*.png"))
        parts += [
            heading,
            f"Protocol: {results['protocol']}.",
            _languages_table(record),
            _budget_table(record),
            *(f"![{task.name}, {model}, {path.stem}]({path.relative_to(folder).as_posix()})" for path in pictures),
        ]
    return parts or ["Not run yet."]


def _languages_table(record: dict[str, Any]) -> str:
    """Return the scores: a row a language, the mean of the others and their gap to the first."""
    results, languages, columns = record["results"], record["languages"], record["columns"]
    several = len(languages) > 1
    counts = [key for key in ("n_images", "n_texts", "n_classes", "n") if prefixed(languages[0], key) in results]
    rows = []
    for language in languages:
        values = [str(results[prefixed(language, key)]) for key in counts]
        rows.append([language or "all", *values, *(score_cell(results, prefixed(language, key)) for key in columns)])
    blank = [""] * len(counts)
    if several:
        means = [_mean_of_others(record, key) for key in columns]
        gaps = [mean - results[prefixed(languages[0], key)] for mean, key in zip(means, columns)]
        rows.append([f"mean of the {len(languages) - 1} others", *blank, *(f"{mean:.3f}" for mean in means)])
        rows.append([f"gap to {languages[0]}", *blank, *(f"{gap:+.3f}" for gap in gaps)])
    chances = [results.get(prefixed(languages[0], f"{key}_chance")) for key in columns]
    rows.append(["chance", *blank, *("" if chance is None else f"{chance:.3f}" for chance in chances)])
    return markdown_table(["language" if several else "", *counts, *columns], rows)


def _budget_table(record: dict[str, Any]) -> str:
    """Return the scores by token budget, of an evaluation that has them."""
    results, languages, column = record["results"], record["languages"], record["columns"][0]
    rows = []
    for language in languages:
        start = prefixed(language, "at_")
        budgets = sorted({int(match[1]) for key in results if (match := re.match(rf"{start}(\d+)_", key))})
        for budget in budgets:
            at = prefixed(language, f"at_{budget}")
            cut = f"{results[f'{at}_n_cut']} of {results[f'{at}_n_texts']}"
            rows.append([language or "all", str(budget), cut, score_cell(results, f"{at}_{column}")])
    return markdown_table(["language", results.get("unit", ""), "captions cut", column], rows) if rows else ""
