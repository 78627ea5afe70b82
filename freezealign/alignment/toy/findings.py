"""The findings of a study in words, all of which follow from its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from freezealign.alignment.toy.correlation import Correlation
from freezealign.alignment.toy.training import MEASURES

if TYPE_CHECKING:
    from freezealign.alignment.toy.study import ToyStudy

PLACES = {"noise": "across noise", "within_noise": "within a level of noise"}
PLACES |= {"width": "across widths", "stretch": "across stretches"}


def describe(study: ToyStudy) -> str:
    """Return a paragraph on where the claim holds, where it fails, and where the runs cannot tell."""
    s, equal = study.settings, float(np.log(study.settings.held_out))
    runs = {arm: f"{len(study.arm(arm))} runs" for arm in ("noise", "width", "stretch")}
    width = study.correlations["width"]["cka_biased"]
    overfit = width["loss"].high < 0 < width["held_out_loss"].low
    worse = sum(run.held_out_loss > equal for run in study.runs)
    return " ".join(
        [
            "The claim: the higher the alignment before training, the lower the loss after it.",
            f"Across noise of {min(s.noises):g} to {max(s.noises):g} and random maps ({runs['noise']}) "
            f"{_told(study, 'noise', 'cka')}.",
            f"Among runs of one level of noise {_told(study, 'within_noise', 'cka')}.",
            f"Across widths of {min(s.widths)} to {max(s.widths)} at {s.train} training pairs ({runs['width']}), where "
            f"biased CKA goes {_course(study, 'width', 'dim', 'cka_biased')}, {_told(study, 'width', 'cka_biased')}"
            f"{': this rise in biased CKA goes with over-fitting' if overfit else ''}.",
            f"There unbiased CKA goes {_course(study, 'width', 'dim', 'cka')}, and {_told(study, 'width', 'cka')}.",
            f"Across invertible linear stretches of {min(s.stretches):g} to {max(s.stretches):g} ({runs['stretch']}), "
            f"where unbiased CKA goes {_course(study, 'stretch', 'stretch', 'cka')} and held-out loss "
            f"{_course(study, 'stretch', 'stretch', 'held_out_loss')}, {_told(study, 'stretch', 'cka')}.",
            f"Intervals with held-out loss that include 0: {_unclear(study)}.",
            f"Held-out loss is above log({s.held_out}) = {equal:.2f}, that of equal logits, in {worse} of all "
            f"{len(study.runs)} runs.",
        ]
    )


def _told(study: ToyStudy, part: str, measure: str) -> str:
    """Return whether the claim holds in a part of the study, and how both losses go with a measure there."""
    found = study.correlations[part][measure]
    held_out = found["held_out_loss"]
    verdict = "holds" if held_out.high < 0 else "is reversed" if held_out.low > 0 else "is not seen"
    return (
        f"the claim {verdict}: as {MEASURES[measure]} rises, training loss {_trend(found['loss'])} and held-out loss "
        f"{_trend(held_out)}"
    )


def _trend(found: Correlation) -> str:
    if np.isnan(found.value):
        return "does not vary"
    if found.includes_zero:
        return f"has no clear trend (rho {found})"
    return f"{'falls' if found.value < 0 else 'rises'} (rho {found})"


def _course(study: ToyStudy, arm: str, level: str, column: str) -> str:
    """Return the mean at the lowest level of an arm and at the highest."""
    runs = study.arm(arm)
    levels = [getattr(run, level) for run in runs]
    ends = [
        np.mean([getattr(run, column) for run in runs if getattr(run, level) == end])
        for end in (min(levels), max(levels))
    ]
    return f"from {ends[0]:.2f} to {ends[1]:.2f}"


def _unclear(study: ToyStudy) -> str:
    pieces = []
    for measure, name in MEASURES.items():
        found = {place: study.correlations[part][measure]["held_out_loss"] for part, place in PLACES.items()}
        places = [place for place, correlation in found.items() if correlation.includes_zero]
        if places:
            pieces.append(f"{name} {' and '.join(places)}")
    return "; ".join(pieces) or "none"
