"""clip-benchmark: test sets in the webdataset layout that its exporter writes, and the prompts that it publishes.

``ROOT/SPLIT/`` holds ``nshards.txt`` and the shards ``0.tar``, ``1.tar``, …, whose samples have an image and a ``.cls``
with the index of its class, or a ``.txt`` with a caption a line. ``ROOT/`` holds ``classnames.txt`` and
``zeroshot_classification_templates.txt``, or ``dataset_type.txt``, which says ``retrieval``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from freezealign.data.sources.shards import Member, find_image, iterate_samples
from freezealign.evaluation.base import by_language
from freezealign.evaluation.testsets.base import (
    CaptionedImages,
    ClassifiedImages,
    check_names,
    find_lines,
    left_out,
    read_captions,
    read_lines,
)
from freezealign.files import open_file, read_object
from freezealign.inputs import InputError, Skipped, shorten

SUFFIXES = {"classification": "cls", "retrieval": "txt"}
"""For each type of data set the suffix of what goes with an image."""
READERS = {"classification": "read_benchmark_classes", "retrieval": "read_benchmark_captions"}
BABEL = "babel_imagenet"
"""ImageNet's classes in some 90 languages, as far as dictionaries have them (Geigle et al., "Babel-ImageNet", 2023)."""
IMAGENET_CLASSES = 1000
FILE_CODES = {"ja": "jp", "zh": "cn"}
"""ISO codes of the languages that the files' names spell otherwise."""


@dataclass(frozen=True)
class _Entry:
    """A sample: its key, where its image lies, the text of its ``.cls`` or ``.txt``, and what is wrong with it."""

    key: str
    image: Member | None
    text: str = ""
    fault: str = ""

    def __str__(self) -> str:
        return f"'{self.key}' of {self.image.size} bytes" if self.image else f"'{self.key}' without an image"


def read_benchmark_classes(root: str | Path, split: str = "test") -> ClassifiedImages:
    """Return a classification data set; its images stay in the shards until they are called for.

    A sample without an image or the index of a class is left out, and listed in ``skipped``.

    Args:
        root: The folder.
        split: Its sub-folder of shards.

    Raises:
        FileNotFoundError: If ``nshards.txt``, a shard or ``classnames.txt`` is missing.
        ModuleNotFoundError: If webdataset is not installed.
        ValueError: If the data set is of another type, a shard is damaged or too many, no sample is good, or a label
            has no class name, or a class name is blank.
    """
    root = Path(root)
    entries = _read_split(root, split, "classification")
    path, remedy = root / "classnames.txt", "write the name of a class a line there, in the order of the labels."
    names = check_names(path, read_lines(path, remedy))
    templates = find_lines(root / "zeroshot_classification_templates.txt")
    reasons = {index: entry.fault for index, entry in enumerate(entries) if entry.fault}
    labels: dict[int, int] = {}
    for index, entry in enumerate(entries):
        try:
            labels[index] = int(entry.text)
        except ValueError:
            where = f"{entry.image.path}: the .cls" if entry.image else "the .cls"
            reasons.setdefault(index, f"{where} of '{entry.key}' is {shorten(entry.text)}, not the index of a class.")
    skipped = left_out(reasons, len(entries))
    kept = [index for index in range(len(entries)) if index not in reasons]
    images = [entries[index].image for index in kept]
    return ClassifiedImages(images, [labels[index] for index in kept], names, templates, skipped=skipped)


def read_benchmark_captions(roots: Mapping[str, str | Path] | str | Path, split: str = "test") -> CaptionedImages:
    """Return a retrieval data set; its images stay in the shards until they are called for.

    A blank line is no caption. Lines end where clip-benchmark's own reader ends them, at rarer characters too. What
    is not UTF-8 is left out and listed in ``skipped``; so is a sample, in all languages, if it has no image or no
    good caption.

    Args:
        roots: The folder, or one for each language. They hold the same images in the same order; those of the first
            are returned.
        split: The sub-folder of the shards.

    Raises:
        FileNotFoundError, ModuleNotFoundError: As :func:`read_benchmark_classes`.
        ValueError: Likewise, and if languages have different images, known by their keys and their sizes in bytes.
    """
    read = {key: _read_split(Path(root), split, "retrieval") for key, root in by_language(roots).items()}
    first, entries = next(iter(read.items()))
    reasons: dict[int, str] = {}
    for language, others in read.items():
        for index, (entry, other) in enumerate(zip_longest(entries, others, fillvalue="missing")):
            if str(entry) != str(other):  # sizes count, because the exporter's keys are no more than positions
                raise ValueError(
                    f"image {index} is {entry} in '{first}', but {other} in '{language}'; export every language from "
                    "the same images, in the same order and format."
                )
        reasons = {index: other.fault for index, other in enumerate(others) if other.fault} | reasons
    captions: dict[str, dict[int, list[str]]] = {language: {} for language in read}
    bad: list[Skipped] = []
    for language, others in read.items():
        for index, other in enumerate(others):
            lines = [line for line in other.text.splitlines() if line.strip()]
            try:
                captions[language][index] = read_captions(index, lines, bad, language)
            except InputError as error:
                where = f"{other.image.path}: the .txt" if other.image else "the .txt"
                reasons.setdefault(index, f"{where} of '{other.key}': {error}")
    skipped = left_out(reasons, len(entries), captions=bad)
    kept = [index for index in range(len(entries)) if index not in reasons]
    texts = {language: [own[index] for index in kept] for language, own in captions.items()}
    return CaptionedImages([entries[index].image for index in kept], texts, skipped=skipped)


def _read_split(root: Path, split: str, kind: str) -> list[_Entry]:
    shards = _find_shards(root, split)
    found = (find_lines(root / "dataset_type.txt") or ["classification"])[0].lower()
    if found != kind:
        remedy = f"read it with {READERS[found]}" if found in READERS else f"only {list(READERS)} can be read"
        raise ValueError(f"{root} is a data set for {found}, by its dataset_type.txt, not for {kind}; {remedy}.")
    entries: list[_Entry] = []
    for path in shards:
        damage: list[str] = []
        with open_file(path) as file:
            samples = list(iterate_samples(path, file, damage))
        if damage:  # told first, because it may have left out what a sample lacks
            raise ValueError(f"cannot read all of {path}: {' '.join(damage)} Fetch it anew.")
        entries += [_read_entry(sample, path, SUFFIXES[kind]) for sample in samples]
    if not entries:
        raise ValueError(f"the split '{split}' of {root} is empty: there is no sample in its {len(shards)} shards.")
    return entries


def _find_shards(root: Path, split: str) -> list[Path]:
    """Return the shards in order, after a check that they are as many as ``nshards.txt`` says."""
    splits = sorted(path.parent.name for path in root.glob("*/nshards.txt"))
    lines = read_lines(root / split / "nshards.txt", f"it says how many shards a split has. {root} has {splits}.")
    if len(lines) != 1 or not lines[0].isdecimal() or len(lines[0]) > 6:
        path = root / split / "nshards.txt"
        raise ValueError(f"{path} holds {shorten(lines)}, not one number; write that of the shards.")
    names = [f"{number}.tar" for number in range(int(lines[0]))]
    found = {path.name for path in (root / split).glob("*.tar")}
    if missing := [name for name in names if name not in found]:
        raise FileNotFoundError(
            f"{root / split}: {len(missing)} of {len(names)} shards are missing, the first is '{missing[0]}'; fetch it."
        )
    if extra := sorted(found.difference(names)):
        raise ValueError(
            f"{root / split} holds '{extra[0]}', but nshards.txt says {len(names)} shards; remove it, or correct that."
        )
    return [root / split / name for name in names]


def _read_entry(sample: Mapping[str, Any], path: Path, suffix: str) -> _Entry:
    key, image = sample["__key__"], find_image(sample)
    found = [name for name in sample if not name.startswith("__")]
    if image is None or suffix not in sample:
        return _Entry(key, image, fault=f"{path}: '{key}' needs an image and a .{suffix}, but has only {found}.")
    try:  # a caption that is not UTF-8 costs itself alone
        return _Entry(key, image, sample[suffix]().decode(errors="surrogateescape" if suffix == "txt" else "strict"))
    except UnicodeDecodeError:
        return _Entry(key, image, fault=f"{path}: the .{suffix} of '{key}' is not UTF-8; write it as UTF-8.")


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
        return _choose(_find_language("classnames", language), dataset, f"class names in '{language}'")
    path = _folder() / "babel_imagenet.json"
    found = _choose(path, language, f"class names of '{BABEL}'")
    names: list[str | None] = [None] * IMAGENET_CLASSES
    try:
        for index, name in zip(*found, strict=True):
            names[index] = name
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is damaged at '{language}' ({error}); install clip-benchmark anew.") from None
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
        path = _find_language("zeroshot_classification_templates", language)
        return _choose(path, dataset, f"prompts in '{language}'")
    prompts = _choose(_folder() / "nllb_dist13b_prompts.json", language, f"prompts of '{BABEL}'")
    return [str(prompt).replace("{}", "{c}") for prompt in prompts]


def _folder() -> Path:
    """Return the folder of the files; nothing is imported, because the package's modules need much else."""
    from importlib.util import find_spec

    spec = find_spec("clip_benchmark")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "class names and prompts of benchmarks come with clip-benchmark: pip install 'freezealign[eval]'"
        )
    return Path(spec.submodule_search_locations[0]) / "datasets"


def _find_language(kind: str, language: str) -> Path:
    """Return the file of a language: for each data set a list."""
    files = {path.name.removesuffix(f"_{kind}.json"): path for path in _folder().glob(f"*_{kind}.json")}
    code = FILE_CODES.get(language, language)
    if code not in files:
        iso = {code: language for language, code in FILE_CODES.items()}
        raise ValueError(
            f"clip-benchmark has no list in '{language}', only in {sorted(iso.get(code, code) for code in files)}; "
            f"'{BABEL}' has ImageNet's classes in many more languages."
        )
    return files[code]


def _choose(path: Path, key: str, what: str) -> list[Any]:
    """Return the list that a file has under ``key``, in any case of its letters."""
    content = {name.lower(): value for name, value in read_object(path).items()}
    if key.lower() not in content:
        raise ValueError(f"clip-benchmark has no {what} for '{key}', only for {sorted(content)}; give your own.")
    found = content[key.lower()]
    if not isinstance(found, list):
        raise ValueError(f"{path} is damaged: '{key}' is no list; install clip-benchmark anew.")
    return found
