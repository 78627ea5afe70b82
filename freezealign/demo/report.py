"""What the demo found, as Markdown, JSON and terminal tables: one set of tables, three faces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freezealign.files import write_atomically, write_json_atomically
from freezealign.inputs import Skipped, skipped_pairs
from freezealign.markdown import markdown_table, score_cell
from freezealign.samples import SampleSet

if TYPE_CHECKING:
    from freezealign.model import FreezeAlign

KS = (1, 5, 10)
Table = tuple[str, list[str], list[list[str]]]
"""Title, header, rows."""


class DemoReport:
    """Collects the demo's results and lays them out.

    Args:
        samples: The data.
        model: The trained model.
        skipped: For each part of the data what could not be read.
        retrieval: Results of the retrieval evaluator.
        zero_shot: Results of the zero-shot evaluator.
        seconds: Time spent in each stage.
    """

    def __init__(
        self,
        samples: SampleSet,
        model: FreezeAlign,
        skipped: Mapping[str, Sequence[Skipped]],
        retrieval: dict[str, Any],
        zero_shot: dict[str, Any],
        seconds: dict[str, float],
    ) -> None:
        self.samples, self.skipped, self.seconds = samples, dict(skipped), seconds
        self.retrieval = {key.removeprefix("retrieval_"): value for key, value in retrieval.items()}
        self.zero_shot = {key.removeprefix("zero_shot_"): value for key, value in zero_shot.items()}
        self.encoders = [encoder.name for encoder in model.encoders.values()]
        self.trained, self.total = model.num_parameters(only_trainable=True), model.num_parameters()
        self.temperature = model.logit_scale.temperature.item()

    @property
    def headline(self) -> dict[str, float]:
        """English T2I R@1 and R@10, and the mean over the other languages."""
        languages = {"English": ["en"], "Other languages, mean": self.samples.languages[1:]}
        return {
            f"{name} T2I R@{k}": sum(self.retrieval[f"{code}_t2i_R@{k}"] for code in codes) / len(codes)
            for name, codes in languages.items()
            for k in (1, 10)
        }

    def tables(self) -> list[Table]:
        """Return every table of the report."""
        numbers = {"trained": f"{self.trained:,}", "total": f"{self.total:,}", "temperature": f"{self.temperature:.4f}"}
        parameters = [list(row) for row in numbers.items()]
        return [
            self._retrieval_table("t2i", "Text to image"),
            self._retrieval_table("i2t", "Image to text"),
            self._zero_shot_table(),
            ("In short", ["", ""], [[name, f"{value:.3f}"] for name, value in self.headline.items()]),
            ("Parameters", ["", ""], parameters),
            ("Seconds", ["stage", "seconds"], [[stage, f"{value:.1f}"] for stage, value in self.seconds.items()]),
        ]

    def write(self, folder: Path) -> None:
        """Write ``report.md`` and ``report.json``."""
        write_atomically(folder / "report.md", lambda file: file.write(self.to_markdown().encode()))
        content = {"retrieval": self.retrieval, "zero_shot": self.zero_shot, "headline": self.headline}
        write_json_atomically(folder / "report.json", {**content, "seconds": self.seconds})

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        train = len(self.samples.train) - len(skipped_pairs(self.skipped["training"]))
        test = len(self.samples.test) - len(skipped_pairs(self.skipped["test"]))
        parts = [
            f"# {' + '.join(self.encoders)} on {self.samples.name}",
            f"Trained on {train} pictures with **English** captions only; tested on {test} others. "
            "In brackets the 95% bootstrap interval over test items. Protocol: "
            f"{self.retrieval['protocol']}; {self.zero_shot['protocol']}; a class without a name in a language keeps "
            "its English one.",
            "![Queries and their five nearest pictures](queries.png)",
            *(f"## {title}\n\n{markdown_table(header, rows)}" for title, header, rows in self.tables()),
            self._skipped_text(),
            f"{self.samples.licence}",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _retrieval_table(self, direction: str, title: str) -> Table:
        header = ["language", "n", *(f"R@{k}" for k in KS), "median rank"]
        rows = []
        for code in self.samples.languages:
            cells = [score_cell(self.retrieval, f"{code}_{direction}_R@{k}") for k in KS]
            rank = f"{self.retrieval[f'{code}_{direction}_median_rank']:g}"
            rows.append([code, str(self.retrieval[f"{code}_n_images"]), *cells, rank])
        chance = [f"{self.retrieval[f'en_{direction}_R@{k}_chance']:.3f}" for k in KS]
        n = self.retrieval["en_n_images"]
        return title, header, [*rows, ["chance", str(n), *chance, f"{(n + 1) / 2:g}"]]

    def _zero_shot_table(self) -> Table:
        codes = [key.removesuffix("_top1") for key in self.zero_shot if key.endswith("_top1")]
        rows = [[code, *(score_cell(self.zero_shot, f"{code}_top{k}") for k in (1, 5))] for code in codes]
        chance = [f"{self.zero_shot[f'{codes[0]}_top{k}_chance']:.3f}" for k in (1, 5)]
        title = f"Zero-shot classification among {self.zero_shot[f'{codes[0]}_n_classes']} held-out names"
        return title, ["language", "top-1", "top-5"], [*rows, ["chance", *chance]]

    def _skipped_text(self) -> str:
        lines = [f"* {part} {entry.index}: {entry.reason}" for part, some in self.skipped.items() for entry in some]
        if not lines:
            return "Every picture could be read."
        return f"{len(lines)} pictures were skipped:\n\n" + "\n".join(lines)
