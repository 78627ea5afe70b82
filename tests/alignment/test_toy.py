"""The toy study: what its pieces do, that it is deterministic, goes on after a stop, and finds what is there."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from freezealign.alignment import linear_cka, toy
from freezealign.alignment.toy import MEASURES, ToySettings, ToyStudy, describe, rank_correlation, run_toy
from freezealign.alignment.toy_runs import MEASURED, PLANNED, make_spaces, recall_at_1, train_projectors
from freezealign.cli import app

COLUMNS = [*PLANNED, *MEASURED]
SMALL = ToySettings.small()
FEW = ToySettings.small(noises=(0.0, 3.0), runs_per_noise=2, widths=(8,), stretches=(3.0,), iterations=5, resamples=20)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study and its folder."""
    folder = tmp_path_factory.mktemp("toy")
    return run_toy(folder, SMALL, show_progress_bar=False), folder


@pytest.fixture(scope="module")
def few_finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    run_toy(folder, FEW, show_progress_bar=False)
    return folder


@pytest.fixture
def few(few_finished, tmp_path):
    """The folder of a study of a few runs, to be changed at will."""
    return shutil.copytree(few_finished, tmp_path / "few")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".png"}


# Spaces


def test_spaces_follow_from_the_seed():
    first, second = (make_spaces(20, 8, (1.0, 2.0), (0.5, 1.0), 3.0, seed=5) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))
    assert not torch.equal(first[0], make_spaces(20, 8, (1.0, 2.0), (0.5, 1.0), 3.0, seed=6)[0])
    assert first[0].shape == first[1].shape == (20, 8)


def test_noise_and_gain_lower_cka():
    by_noise = [linear_cka(*make_spaces(300, 8, (1.0, 1.0), (noise, noise))) for noise in (0.0, 1.0, 2.0, 4.0, 8.0)]
    by_gain = [linear_cka(*make_spaces(300, 8, (gain, gain), (0.0, 0.0))) for gain in (0.1, 1.0, 3.0, 10.0)]
    assert by_noise == sorted(by_noise, reverse=True)
    assert by_gain == sorted(by_gain, reverse=True)
    assert linear_cka(*make_spaces(300, 8, (0.01, 0.01), (0.0, 0.0))) > 0.999  # one space, rotated


def test_a_stretch_is_linear_and_invertible_and_of_the_stated_ratio():
    plain, stretched = (make_spaces(100, 6, (1.0, 1.0), (0.0, 0.0), stretch, seed=1)[0] for stretch in (1.0, 9.0))
    found, residual, rank, _ = np.linalg.lstsq(plain.double().numpy(), stretched.double().numpy())
    values = np.linalg.svd(found, compute_uv=False)
    assert rank == 6 and residual.max() < 1e-8
    assert values[0] / values[-1] == pytest.approx(9, rel=1e-4)


# Training


def test_training_follows_from_the_seed_and_leaves_the_global_generator():
    spaces = make_spaces(128, 8, (1.0, 1.0), (0.5, 0.5))
    before = torch.random.get_rng_state()
    first, second = (train_projectors(*spaces, SMALL, seed=3) for _ in range(2))
    assert first == second != train_projectors(*spaces, SMALL, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_shared_latent_is_learnt_and_unrelated_spaces_are_not():
    settings = replace(SMALL, train=256, held_out=64, iterations=200)
    first, second = make_spaces(320, 8, (0.5, 0.5), (0.0, 0.0))
    learnt = train_projectors(first, second, settings)
    unrelated = train_projectors(first, make_spaces(320, 8, (0.5, 0.5), (0.0, 0.0), seed=9)[1], settings)
    assert learnt[1] < 0.5 and learnt[2] > 0.9
    assert math.log(64) - 0.1 < unrelated[1] < math.log(64) + 1.5
    assert unrelated[2] < 0.1


def test_recall_is_of_both_directions_and_a_tie_counts_against():
    assert recall_at_1(torch.eye(3)) == 1
    # Rows: right, second, right. Columns: right, tied, right.
    similarity = torch.tensor([[0.9, 0.5, 0.1], [0.6, 0.5, 0.0], [0.2, 0.3, 0.8]])
    assert recall_at_1(similarity) == pytest.approx(4 / 6)


# Rank correlation


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = (x + rng.normal(size=40)).round(1)  # with ties
    found = rank_correlation(x, y)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.low < found.value < found.high and found.n == 40
    assert found == rank_correlation(x, y)


def test_within_groups_what_differs_between_them_counts_for_nothing():
    x = [0, 1, 2, 10, 11, 12, 20, 21, 22]
    y = [2, 1, 0, 12, 11, 10, 22, 21, 20]
    assert rank_correlation(x, y).value > 0.5
    assert rank_correlation(x, y, [0, 0, 0, 1, 1, 1, 2, 2, 2]).value == pytest.approx(-1)
    assert math.isnan(rank_correlation([1, 2, 3], [5, 5, 5]).value)


# The study


def test_small_study_sees_loss_fall_as_alignment_rises(finished):
    found, _ = finished
    for measure in MEASURES:
        assert found.correlations["noise"][measure]["loss"].high < 0
        assert found.correlations["noise"][measure]["recall_at_1"].low > 0
    wide, narrow = ([run for run in found.arm("width") if run["dim"] == dim] for dim in (64, 8))
    assert min(run["cka_biased"] for run in wide) > max(run["cka_biased"] for run in narrow)


def test_files_hold_the_stated_columns_settings_and_summary(finished):
    found, folder = finished
    rows = list(csv.DictReader((folder / "toy.csv").open(encoding="utf-8")))
    assert list(rows[0]) == COLUMNS and len({row["seed"] for row in rows}) == len(rows) == 12 + 4 + 4
    content = json.loads((folder / "toy.json").read_text(encoding="utf-8"))
    assert content["settings"]["noises"] == [0, 1, 4] and content["findings"] == describe(found)
    assert content["correlations"]["noise"]["cka"]["loss"]["n"] == 12
    assert (folder / "toy.png").stat().st_size > 10_000
    assert {path.name for path in folder.iterdir()} == {"toy.csv", "toy.json", "toy.png"}


def test_finished_study_is_read_and_not_done_again(few, monkeypatch):
    before = files(few)
    monkeypatch.setattr(toy, "do_run", None)
    run_toy(few, FEW, show_progress_bar=False)
    assert files(few) == before


def test_stopped_study_goes_on_to_the_same_files(few, tmp_path):
    whole = files(few)
    table = whole["toy.csv"]
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    content = {key: value for key, value in json.loads(whole["toy.json"]).items() if key in ("protocol", "settings")}
    (stopped / "toy.json").write_text(json.dumps(content), encoding="utf-8")
    (stopped / "toy.csv").write_bytes(table[: int(0.7 * len(table))])
    run_toy(stopped, FEW, show_progress_bar=False)
    assert files(stopped) == whole


def test_runs_are_kept_as_they_finish(tmp_path, monkeypatch):
    done, do_run = [], toy.do_run

    def stop(settings, plan):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(plan["run"])
        return do_run(settings, plan)

    monkeypatch.setattr(toy, "do_run", stop)
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, FEW, show_progress_bar=False)
    assert len((tmp_path / "toy.csv").read_text(encoding="utf-8").splitlines()) == 1 + 3
    monkeypatch.setattr(toy, "do_run", lambda settings, plan: done.append(plan["run"]) or do_run(settings, plan))
    run_toy(tmp_path, FEW, show_progress_bar=False)
    assert done == list(range(8))


def test_other_settings_are_refused(few):
    before = files(few)
    settings = r"settings.seed = 0, this run has 1; settings.iterations = 5, this run has 6"
    with pytest.raises(ValueError, match=settings):
        run_toy(few, replace(FEW, iterations=6, seed=1))
    assert files(few) == before


def damaged(rows: list[str]) -> dict[str, str]:
    """What may be in the place of a table, of which these are the lines."""
    header, first, second, *_ = rows
    name, number = first.split(",")[1], first.split(",")[-1]
    tables = {
        "another header": ["a,b", "1,2"],
        "columns in another order": [",".join(reversed(header.split(","))), ",".join(reversed(first.split(",")))],
        "a row too short": [header, first.rpartition(",")[0]],
        "a row too long": [header, f"{first},1"],
        "a word for a number": [header, f"{first.removesuffix(number)}none"],
        "another arm": [header, first.replace(name, "width")],
        "rows in another order": [header, second, first],
        "more rows than runs": [*rows, rows[-1]],
        "a field without end": [header, f'"{first}'],
        "a huge field": [header, f"{'1' * 200_000}{first}"],
    }
    return {what: "\n".join(lines) + "\n" for what, lines in tables.items()}


def test_a_table_of_something_else_is_refused_and_stays(few):
    table = few / "toy.csv"
    for what, content in damaged(table.read_text(encoding="utf-8").splitlines()).items():
        table.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"toy\.csv is not of this study \(.*use another folder"):
            run_toy(few, FEW)
        assert table.read_text(encoding="utf-8") == content, what
    table.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match=r"toy\.csv is not of this study"):
        run_toy(few, FEW)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"protocol": 0, "settings": {}}', "protocol = 0, this run has 1"),
        ('{"protocol": [], "settings": null}', r"protocol = \[\], this run has 1; settings = None"),
        ('{"protocol": 1, "settings": 3}', "settings = 3, this run has"),
        ('["protocol"]', "it holds no object"),
        ("[" * 100_000, "not valid JSON"),
        ('{"protocol": ' + "[" * 700 + "]" * 700 + "}", "nested deeper than"),
        ('{"protocol": 1', "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_a_folder_of_something_else_is_refused(few, content, message):
    (few / "toy.json").write_text(content, encoding="utf-8")
    before = files(few)
    with pytest.raises(ValueError, match=message):
        run_toy(few, FEW)
    assert files(few) == before
    (few / "toy.json").unlink()
    with pytest.raises(FileExistsError, match=r"'toy\.(csv|png)' and no toy study"):
        run_toy(few, FEW)


@pytest.mark.parametrize(("sign", "verdict"), [(-1, "holds"), (1, "is reversed")])
def test_findings_follow_from_the_numbers(finished, sign, verdict):
    runs = [run | {"loss": sign * run["cka"], "held_out_loss": sign * run["cka"]} for run in finished[0].runs]
    found = describe(ToyStudy(SMALL, runs))
    assert f"(12 runs) the claim {verdict}: as unbiased CKA rises" in found
    assert len(found.split(". ")) <= 8


def test_findings_name_over_fitting_and_intervals_with_0(finished):
    runs = finished[0].runs
    over_fitted = [run | {"loss": -run["cka_biased"], "held_out_loss": run["cka_biased"]} for run in runs]
    assert "goes with over-fitting" in describe(ToyStudy(SMALL, over_fitted))
    rng = np.random.default_rng(0)
    chance = describe(ToyStudy(SMALL, [run | {"held_out_loss": float(rng.normal())} for run in runs]))
    assert "goes with over-fitting" not in chance and "include 0: unbiased CKA across noise" in chance


def test_an_outcome_that_does_not_vary_is_said_and_is_null_in_json(tmp_path, monkeypatch):
    do_run = toy.do_run
    monkeypatch.setattr(toy, "do_run", lambda *plan: do_run(*plan) | {"held_out_loss": 0.0})
    run_toy(tmp_path, FEW, show_progress_bar=False)
    content = json.loads((tmp_path / "toy.json").read_text(encoding="utf-8"))
    assert content["correlations"]["noise"]["cka"]["held_out_loss"]["value"] is None
    assert "the claim is not seen" in content["findings"] and "held-out loss does not vary" in content["findings"]


def test_settings_out_of_range_are_refused():
    changes = [{"train": 5}, {"runs_per_noise": 0}, {"noises": ()}, {"noises": (-1.0,)}, {"gains": (2.0, 1.0)}]
    for change in [*changes, {"stretches": (0.5,)}, {"temperature": 2.0}]:
        with pytest.raises(ValueError, match=next(iter(change))):
            ToySettings.small(**change)


def test_quick_study_from_the_command_line(tmp_path):
    result = CliRunner().invoke(app, ["toy", "--quick", "--output", str(tmp_path)])
    assert result.exit_code == 0 and "The claim:" in result.output
    assert json.loads((tmp_path / "toy.json").read_text(encoding="utf-8"))["runs"] == 20
