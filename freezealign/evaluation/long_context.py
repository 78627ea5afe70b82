"""Long context: what a model gains from reading further into a caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from freezealign.evaluation.base import Results, all_prefixed, prefixed
from freezealign.evaluation.budgets import counting, cut
from freezealign.evaluation.captioned import Captions
from freezealign.evaluation.embed import embed
from freezealign.evaluation.pictures import draw_curves
from freezealign.evaluation.retrieval import RetrievalEvaluator

BUDGETS = (8, 16, 32, 64, 128, 256, 512)


class LongContextEvaluator(RetrievalEvaluator):
    """Retrieval with captions cut to a series of token budgets.

    The tokens are those of the model's own tokenizer, without special ones; words where it has none. The last budget is
    the longest caption, which cuts nothing, or the text encoder's own limit where that is less; what is larger is left
    out.

    Args:
        images: The images, in any form ``encode_image`` takes.
        captions: For each image a caption, several, or ``None`` where there is none (the image is then left out); or
            such a list for each language. Languages are evaluated apart.
        name: Put in front of every metric.
        budgets: Tokens to which captions are cut.
        ks: Ranks to report.
        batch_size: Items a forward pass.
        show_progress_bar: Show progress if it takes longer than a second.

    Raises:
        ValueError: If a budget is not positive.
    """

    def __init__(
        self,
        images: Any,
        captions: Captions | Mapping[str, Captions],
        name: str = "",
        budgets: Sequence[int] = BUDGETS,
        ks: Sequence[int] = (1,),
        batch_size: int = 32,
        show_progress_bar: bool = True,
    ) -> None:
        super().__init__(images, captions, name, ks, batch_size, show_progress_bar)
        self.budgets = sorted(set(budgets))
        if not self.budgets or self.budgets[0] < 1:
            raise ValueError(f"budgets are at least one token, got {list(budgets)}.")
        self.columns = [f"t2i_R@{k}" for k in self.ks]

    def evaluate(self, model: Any, folder: Path | None = None) -> Results:
        """Return for each language and budget ``at_BUDGET_…`` what retrieval gives, and ``at_BUDGET_n_cut`` captions.

        What stands without a budget is the largest one's. Draws R@k against the budget.
        """
        ends, unit, limit = counting(model)
        images, metric = embed(model, "image", self.images, **self.options), self.columns[0]
        results: Results = {"protocol": f"{self.protocol}; captions cut to a number of {unit}", "unit": unit}
        curves: dict[str, list[dict[str, float]]] = {}
        for language, texts in self.texts.items():
            counts = [len(ends(text)) for text in texts]
            longest, points = max(counts), curves.setdefault(language or "captions", [])
            for budget in _reached(self.budgets, longest, limit):
                scores = self.language_scores(model, images, language, [cut(text, ends, budget) for text in texts])
                scores["n_cut"] = sum(count > budget for count in counts)
                results |= all_prefixed(prefixed(language, f"at_{budget}"), scores)
                points.append({"x": budget, "y": scores[metric], **_interval(scores, metric)})
            results |= all_prefixed(language, {**scores, "longest": longest, "budget": budget})
        if folder is not None:
            draw_curves(folder / "curve.png", curves, (f"{unit} of each caption", metric), f"{metric} by {unit} read")
        return results

    def precompute(self, model: Any, path: str | Path | None = None) -> LongContextEvaluator:
        """Run the frozen image encoder once; texts are encoded anew at each budget. Arguments as in the base."""
        self._precompute_images(model, path)
        return self


def _reached(budgets: Sequence[int], longest: int, limit: int | None) -> list[int]:
    """Return the budgets worth a run: those that cut something, and the most that can be read."""
    end = longest if limit is None else min(longest, limit)
    return [*(budget for budget in budgets if budget < end), end]


def _interval(scores: Mapping[str, float], metric: str) -> dict[str, float]:
    return {end: scores[f"{metric}_{end}"] for end in ("low", "high")}
