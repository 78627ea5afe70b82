"""Long context: what a model gains from reading further into a caption."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from freezealign.evaluation.base import Results, all_prefixed, embed, prefixed
from freezealign.evaluation.pictures import draw_curves
from freezealign.evaluation.retrieval import Captions, RetrievalEvaluator
from freezealign.words import word_ends

BUDGETS = (8, 16, 32, 64, 128, 256, 512)
Ends = Callable[[str], list[int]]
"""From a text to the positions at which its tokens end, in characters."""


class LongContextEvaluator(RetrievalEvaluator):
    """Retrieval with captions cut to a series of token budgets.

    The tokens are those of the model's own tokenizer, without special ones; words where it has none. The last budget is
    the longest caption, which cuts nothing, or the text encoder's own limit where that is less; what is larger is left
    out.

    Args:
        images, captions, name, ks, batch_size, show_progress_bar: As :class:`~freezealign.RetrievalEvaluator` has them.
        budgets: Tokens to which captions are cut.

    Raises:
        ValueError: If a budget is not positive.
    """

    texts_stay = False

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
            most = longest if limit is None else min(longest, limit)
            for budget in [*(budget for budget in self.budgets if budget < most), most]:
                scores = self.language_scores(model, images, language, [cut(text, ends, budget) for text in texts])
                scores["n_cut"] = sum(count > budget for count in counts)
                results |= all_prefixed(prefixed(language, f"at_{budget}"), scores)
                interval = {end: scores[f"{metric}_{end}"] for end in ("low", "high")}
                points.append({"x": budget, "y": scores[metric], **interval})
            results |= all_prefixed(language, {**scores, "longest": longest, "budget": most})
        if folder is not None:
            draw_curves(folder / "curve.png", curves, (f"{unit} of each caption", metric), f"{metric} by {unit} read")
        return results


def counting(model: Any) -> tuple[Ends, str, int | None]:
    """Return how a model's texts are counted, what is counted, and how many of them its text encoder reads.

    A limit includes the special tokens that the encoder adds; they are taken off here. Words are counted, and no limit
    is known, where the model does not show its tokenizer.
    """
    encoder = getattr(model, "encoders", {}).get("text")
    if encoder is None or encoder.encoder.tokenizer is None:
        return word_ends, "words", None
    tokenizer, limit = encoder.encoder.tokenizer, encoder.max_seq_length
    special = tokenizer.num_special_tokens_to_add()
    return token_ends(tokenizer), "tokens", None if limit is None else limit - special


def token_ends(tokenizer: Any) -> Ends:
    """Return what finds the ends of a text's tokens, special ones left out, with a fast Hugging Face tokenizer.

    Raises:
        ValueError: If it is not a fast one, which alone knows positions.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{type(tokenizer).__name__} does not know where its tokens end; use a fast tokenizer.")

    def ends(text: str) -> list[int]:
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
        return [end for _, end in read["offset_mapping"]]

    return ends


def cut(text: str, ends: Ends, budget: int) -> str:
    """Return the beginning of ``text`` that has at most ``budget`` tokens, cut where one ends and never in a character.

    What is left may split in another way than it did within the text, and into more tokens: then it is cut again.

    ``ends`` finds where tokens end, ascending; those that make up one character all end where it does.
    """
    while len(places := ends(text)) > budget:
        whole = bisect_left(places, places[budget])
        text = text[: [0, *places][min(budget, whole)]]
    return text
