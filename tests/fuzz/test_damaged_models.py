"""Saved models: a damaged folder is refused, or gives the vectors that it was saved with."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from judge import driver, judge, require_equal
from PIL import Image
from spoil import Edit, Link, damaged_folder, in_short, read_folder, write_folder
from valid import TEXTS

from freezealign import FreezeAlign

PICTURES = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue", "white", "gray")]
RECIPES = ("token", "pooled", "linear", "glu", "kernel", "relative")


def said(one: FreezeAlign) -> dict[str, Any]:
    """Return what a model gives."""
    return {
        "modalities": one.modalities,
        "images": one.encode(PICTURES),
        "texts": one.encode(TEXTS),
        "temperature": one.logit_scale.temperature.item(),
    }


@cache
def whole(recipe: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files of a saved model, and what it gives."""
    one = FreezeAlign(["fuzz-pixels", "fuzz-letters"], recipe=recipe, dim=4, seed=0, device="cpu")
    if recipe in ("kernel", "relative"):
        one.fit(list(zip(PICTURES, TEXTS)), show_progress_bar=False)
    with TemporaryDirectory() as folder:
        one.save_pretrained(folder)
        return read_folder(Path(folder)), said(one)


@st.composite
def damaged_models(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Return the recipe of a model, and what lies in its folder instead."""
    recipe = draw(st.sampled_from(RECIPES))
    return recipe, draw(damaged_folder(whole(recipe)[0]))


@driver(8)
@given(damaged_models())
@example(("token", {"image_2_Pooling/config.json": Link("/dev/zero")}))
@example(("token", {"image_2_Pooling/config.json": b"1" * 5000}))
@example(("kernel", {"text_2_KernelHead/config.json": Edit(b'"width": 0.4', b'"width": 0.5')}))
@example(("relative", {"text_2_RelativeHead/config.json": Edit(b'"neighbours": ', b'"neighbours": "x", "y": ')}))
@example(("kernel", {"router_config.json": Edit(b'"text_0_FrozenEncoder",', b"")}))
def test_a_damaged_model_is_refused_or_gives_what_it_gave(damaged):
    recipe, damage = damaged
    files, right = whole(recipe)

    def run(folder):
        require_equal(
            said(FreezeAlign.from_pretrained(write_folder(folder, files, damage), device="cpu")), right, "the model"
        )

    judge(
        "models",
        (recipe, in_short(files, damage)),
        run,
        "'fuzz-",
        "layer=",
        "the reference of an encoder",
        "are NaN or Inf",
    )
