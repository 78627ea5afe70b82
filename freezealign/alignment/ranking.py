"""PairRanking: every pair of encoders with its scores, best first; as a table, a picture and files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from freezealign.alignment.candidates import Cost
from freezealign.alignment.significance import AlignmentScore
from freezealign.figures import PALETTE, SCALE, new_figure, text_color
from freezealign.files import write_json_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


SMALLER = 0.9
"""Share of the best pair's parameters below which another pair is worth a word."""


@dataclass(frozen=True)
class RankedPair:
    """A vision and a text encoder with their scores.

    Args:
        vision: Name of the vision encoder.
        text: Name of the text encoder.
        layers: The layers that were compared, each counted from 1; ``None`` where these are the last.
        scores: For each metric its score.
    """

    vision: str
    text: str
    layers: tuple[int, int] | None
    scores: dict[str, AlignmentScore]


class PairRanking:
    """What :func:`rank_encoders` found.

    Args:
        pairs: Every pair, vision encoders in their order and for each the text encoders in theirs.
        vision_costs: For each vision encoder what it costs.
        text_costs: Likewise.

    Attributes:
        pairs: Sorted by the first metric, best first.
        metrics: Names of the metrics, the deciding one first.
    """

    def __init__(
        self, pairs: Sequence[RankedPair], vision_costs: Mapping[str, Cost], text_costs: Mapping[str, Cost]
    ) -> None:
        self.metrics = list(pairs[0].scores)
        self.vision_costs, self.text_costs = dict(vision_costs), dict(text_costs)
        self.pairs = sorted(pairs, key=lambda pair: -pair.scores[self.metrics[0]].value)

    @property
    def best(self) -> RankedPair:
        """The pair that is predicted to align best."""
        return self.pairs[0]

    def recommendation(self) -> str:
        """Return in words which pair to take, and which smaller one the data cannot tell from it."""
        metric, best = self.metrics[0], self.best
        score = best.scores[metric]
        lines = [f"Predicted to align best: {best.vision} + {best.text} ({score})."]
        if score.calibrated == 0:
            lines.append("It is not above chance: none of these pairs is known to be aligned at all. Take more data.")
        rivals = [pair for pair in self.pairs[1:] if pair.scores[metric].high >= score.low]
        known = [pair for pair in rivals if self._parameters(pair) < SMALLER * self._parameters(best)]
        if known:
            small = min(known, key=self._parameters)
            lines.append(
                f"{small.vision} + {small.text} ({small.scores[metric].value:.3f}) is within the intervals, with "
                f"{self._parameters(small) / 1e6:,.0f} instead of {self._parameters(best) / 1e6:,.0f} million "
                "parameters."
            )
        return " ".join(lines)

    def _parameters(self, pair: RankedPair) -> float:
        counts = [cost.parameters for cost in self._costs(pair)]
        return float("inf") if None in counts else float(sum(count for count in counts if count is not None))

    def _costs(self, pair: RankedPair) -> tuple[Cost, Cost]:
        return self.vision_costs[pair.vision], self.text_costs[pair.text]

    def table(self) -> list[dict[str, Any]]:
        """Return one flat row a pair, best first: names, layers, what the encoders cost, and every score."""
        rows = []
        for pair in self.pairs:
            row: dict[str, Any] = {"vision": pair.vision, "text": pair.text}
            if pair.layers is not None:
                row |= dict(zip(("vision_layer", "text_layer"), pair.layers))
            for side, cost in zip(("vision", "text"), self._costs(pair)):
                row |= {f"{side}_{key}": value for key, value in asdict(cost).items()}
            for metric, score in pair.scores.items():
                numbers = {key: value for key, value in asdict(score).items() if key != "metric"}
                row |= {metric: numbers.pop("value")} | {f"{metric}_{key}": number for key, number in numbers.items()}
            rows.append(row)
        return rows

    def summary(self) -> tuple[list[str], list[list[str]]]:
        """Return the scores to print, best first: a header, and rows of text; ± is half the 95% interval."""
        header = ["vision", "text", *(f"{metric}\nn = {self.best.scores[metric].n:,}" for metric in self.metrics)]
        header.append(f"{self.metrics[0]}\ncalibrated")
        rows = []
        for pair in self.pairs:
            layers = pair.layers or (None, None)
            names = [n if k is None else f"{n}, layer {k}" for n, k in zip((pair.vision, pair.text), layers)]
            rows.append([*names, *map(_brief, pair.scores.values()), f"{pair.scores[self.metrics[0]].calibrated:.3f}"])
        return header, rows

    def cost_summary(self) -> tuple[list[str], list[list[str]]]:
        """Return what the encoders cost, to print: a header, and rows of text."""
        header = ["encoder", "parameters", "ms an item", "width"]
        rows = []
        for name, cost in (*self.vision_costs.items(), *self.text_costs.items()):
            parameters = "unknown" if cost.parameters is None else f"{cost.parameters / 1e6:,.1f} M"
            speed = "unknown" if cost.milliseconds is None else f"{cost.milliseconds:.1f}"
            rows.append([name, parameters, speed, f"{cost.dim:,}"])
        return header, rows

    def to_pandas(self) -> DataFrame:
        """Return :meth:`table` as a data frame; needs pandas."""
        from pandas import DataFrame

        return DataFrame(self.table())

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw a heat map of each metric, vision encoders as rows, and return the figure.

        Colours run from the lowest value to the highest, which is framed; numbers below a name are millions of
        parameters.

        Args:
            path: Where to save it as a picture.
        """
        size = (2.5 + len(self.metrics) * (2.2 + 0.9 * len(self.text_costs)), 1.8 + 0.55 * len(self.vision_costs))
        figure = new_figure(*size)
        for axes, metric in zip(figure.subplots(1, len(self.metrics), squeeze=False)[0], self.metrics):
            self._draw(axes, metric)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def _draw(self, axes: Any, metric: str) -> None:
        from matplotlib.patches import Rectangle

        vision, text = list(self.vision_costs), list(self.text_costs)
        values = np.empty((len(vision), len(text)))
        places = [(vision.index(pair.vision), text.index(pair.text)) for pair in self.pairs]
        for place, pair in zip(places, self.pairs):
            values[place] = pair.scores[metric].value
        image = axes.imshow(values, aspect="auto", cmap=SCALE)
        for (row, column), pair in zip(places, self.pairs):
            layers = "" if pair.layers is None else f"\n{pair.layers[0]} × {pair.layers[1]}"
            color = text_color(image.to_rgba(values[row, column]))
            label = f"{values[row, column]:.3f}{layers}"
            axes.text(column, row, label, ha="center", va="center", color=color, fontsize=10)
        top, left = np.unravel_index(values.argmax(), values.shape)
        frame = Rectangle((left - 0.5, top - 0.5), 1, 1, fill=False, edgecolor=PALETTE[1], linewidth=3, clip_on=False)
        axes.add_patch(frame)
        axes.set_xticks(
            range(len(text)), [_label(*entry) for entry in self.text_costs.items()], rotation=30, ha="right"
        )
        axes.set_yticks(range(len(vision)), [_label(*entry) for entry in self.vision_costs.items()])
        axes.set_title(f"{metric}, n = {self.best.scores[metric].n:,}")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``ranking.json`` and ``ranking.png`` into a folder, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"metrics": self.metrics, "recommendation": self.recommendation(), "pairs": self.table()}
        write_json_atomically(folder / "ranking.json", content)
        self.plot(folder / "ranking.png")

    def __repr__(self) -> str:
        size = f"{len(self.vision_costs)} x {len(self.text_costs)}"
        return f"PairRanking({size}, best: {self.best.vision} + {self.best.text})"


def _brief(score: AlignmentScore) -> str:
    half = (score.high - score.low) / 2
    return f"{score.value:.3f}" if np.isnan(half) else f"{score.value:.3f}±{half:.3f}"


def _label(name: str, cost: Cost) -> str:
    return name if cost.parameters is None else f"{name}\n{cost.parameters / 1e6:,.0f} M"
