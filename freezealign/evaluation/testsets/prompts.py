"""Class names and prompts of public benchmarks, from the files that clip-benchmark publishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BABEL = "babel_imagenet"
"""ImageNet's classes in some 90 languages, as far as dictionaries have them (Geigle et al., "Babel-ImageNet", 2023)."""

IMAGENET_CLASSES = 1000
FILE_CODES = {"ja": "jp", "zh": "cn"}
"""ISO codes of the languages that the files' names spell otherwise."""


def benchmark_class_names(dataset: str, language: str = "en") -> list[str | None]:
    """Return the names of a benchmark's classes in the order of its labels.

    Args:
        dataset: clip-benchmark's name of it, such as ``imagenet1k``, ``pets``, or ``babel_imagenet``.
        language: ISO code, such as ``de``; clip-benchmark's own ``jp`` and ``cn`` do too where it has files of them.

    Returns:
        As many names as there are classes. In ``babel_imagenet`` those that the language does not cover are ``None``,
        and zero-shot classification leaves them out.

    Raises:
        ModuleNotFoundError: If clip-benchmark is not installed.
        ValueError: If it has no names of this data set in this language.
    """
    if dataset != BABEL:
        return list(_choose(_read_language("classnames", language), dataset, f"class names in '{language}'"))
    names: list[str | None] = [None] * IMAGENET_CLASSES
    for index, name in zip(*_choose_babel("babel_imagenet.json", language, "class names")):
        names[index] = name
    return names


def benchmark_templates(dataset: str, language: str = "en") -> list[str]:
    """Return a benchmark's prompts, with ``{c}`` where the name of a class goes.

    Args:
        dataset: clip-benchmark's name of it; there are prompts for some data sets of which it has no class names.
        language: As in :func:`benchmark_class_names`. Those of ``babel_imagenet`` are ImageNet's 80, translated by
            machine.

    Raises:
        ModuleNotFoundError: If clip-benchmark is not installed.
        ValueError: If it has no prompts of this data set in this language.
    """
    if dataset != BABEL:
        content = _read_language("zeroshot_classification_templates", language)
        return list(_choose(content, dataset, f"prompts in '{language}'"))
    return [prompt.replace("{}", "{c}") for prompt in _choose_babel("nllb_dist13b_prompts.json", language, "prompts")]


def _folder() -> Path:
    """Return the folder of the files; nothing is imported, because the package's modules need much else."""
    from importlib.util import find_spec

    spec = find_spec("clip_benchmark")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "class names and prompts of benchmarks come with clip-benchmark: pip install 'freezealign[eval]'"
        )
    return Path(spec.submodule_search_locations[0]) / "datasets"


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _read_language(kind: str, language: str) -> dict[str, Any]:
    """Return the file of a language: for each data set a list."""
    files = {path.name.removesuffix(f"_{kind}.json"): path for path in _folder().glob(f"*_{kind}.json")}
    code = FILE_CODES.get(language, language)
    if code not in files:
        iso = {code: language for language, code in FILE_CODES.items()}
        raise ValueError(
            f"clip-benchmark has no list in '{language}', only in {sorted(iso.get(code, code) for code in files)}; "
            f"'{BABEL}' has ImageNet's classes in many more languages."
        )
    return _read(files[code])


def _choose_babel(file: str, language: str, what: str) -> Any:
    content = {code.lower(): value for code, value in _read(_folder() / file).items()}
    return _choose(content, language, f"{what} of '{BABEL}'")


def _choose(content: dict[str, Any], key: str, what: str) -> Any:
    if key not in content:
        raise ValueError(f"clip-benchmark has no {what} for '{key}', only for {sorted(content)}; give your own.")
    return content[key]
