"""Long context: what a model gains from reading further into a caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from freezealign.evaluation.base import Results, prefixed
from freezealign.evaluation.budgets import counting, cut
from freezealign.evaluation.captioned import Captions
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
        images = self._embed_images(model)
        results: Results = {"protocol": f"{self.protocol}; captions cut to a number of {unit}", "unit": unit}
        curves: dict[str, list[dict[str, float]]] = {}
        for language, texts in self.texts.items():
            owners = self._owners(language, images.device)
            counts = [len(ends(text)) for text in texts]
            longest = max(counts)
            points = curves.setdefault(language or "captions", [])
            for budget in _reached(self.budgets, longest, limit):
                some = [cut(text, ends, budget) for text in texts]
                scores = self.scores(images, self._embed_texts(model, some), owners)
                scores["n_cut"] = sum(count > budget for count in counts)
                results |= {prefixed(language, prefixed(f"at_{budget}", key)): value for key, value in scores.items()}
                points.append(_point(budget, scores, self.columns[0]))
            results |= {prefixed(language, key): value for key, value in scores.items()}
            results |= {prefixed(language, "longest"): longest, prefixed(language, "budget"): budget}
        if folder is not None:
            metric = self.columns[0]
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


def _point(budget: int, scores: Mapping[str, float], metric: str) -> dict[str, float]:
    return {"x": budget, "y": scores[metric], "low": scores[f"{metric}_low"], "high": scores[f"{metric}_high"]}
