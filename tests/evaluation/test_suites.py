"""Suites: evaluations as data, run one by one, with one report."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from kills import Killed, check_every_kill
from PIL import Image

from freezealign.evaluation.suites import Suite, run_suite
from freezealign.evaluation.suites.suite import builtin_suites
from freezealign.evaluation.suites.tasks import EVALUATORS, READERS, make_evaluator, read_data
from freezealign.evaluation.testsets import ClassifiedImages
from freezealign.files import exclusive, write_atomically
from freezealign.inputs import InputError
from freezealign.modality import read_item
from freezealign.samples import hash_fold
from freezealign.samples.tuxpaint import LANGUAGES, load_tuxpaint

RED, BLUE = (200, 30, 30), (30, 30, 200)
FOLDERS = [
    *("animals", "clothes", "food", "hobbies", "household", "medical", "military", "naturalforces", "people", "plants"),
    *("seasonal", "space", "sports", "town", "vehicles"),
]


class Toy:
    """A model that embeds at once, from the letters of a text; it counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def encode_text(self, texts, **_):
        self.calls += 1
        codes = torch.tensor([[len(text), sum(map(ord, text[-4:])), ord(text[0])] for text in texts])
        return torch.nn.functional.normalize(torch.sin(codes.float()) + 1.1, dim=-1)

    def encode_image(self, items, **_):
        return torch.nn.functional.normalize(torch.rand(len(items), 3, generator=torch.Generator().manual_seed(0)))

    def encode_tokens(self, images, **_):
        generator = torch.Generator().manual_seed(0)
        return [(torch.nn.functional.normalize(torch.rand(4, 3, generator=generator)), (2, 2)) for _ in images]


class Oracle:
    """A model that knows red from blue, and of the words only those it is given."""

    def __init__(self, **words: tuple[float, float]) -> None:
        self.words = words

    def encode_image(self, items, **_):
        colours = [Image.open(item).convert("RGB").getpixel((0, 0)) for item in items]
        return torch.tensor([[float(colour == RED), float(colour == BLUE)] for colour in colours])

    def encode_text(self, texts, **_):
        return torch.tensor([self.words[text] for text in texts])


# Data


def png(colour=(90, 90, 90), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 10), colour).save(stream, kind)
    return stream.getvalue()


def write_shards(root, texts: list[str], suffix: str, **files: str) -> None:
    """Write a data set in clip-benchmark's layout: one shard, and the files of its root."""
    (root / "test").mkdir(parents=True)
    (root / "test/nshards.txt").write_text("1")
    with tarfile.open(root / "test/0.tar", "w") as archive:
        for number, text in enumerate(texts):
            for ending, content in (("png", png((number * 20, 9, 9))), (suffix, text.encode())):
                header = tarfile.TarInfo(f"{number:05}.{ending}")
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
    for name, text in files.items():
        (root / f"{name}.txt").write_text(text)


def write_class_folders(root) -> None:
    for name, colour in {"apple": RED, "car": BLUE}.items():
        (root / name).mkdir(parents=True)
        for number in range(3):
            (root / name / f"{number}.png").write_bytes(png(colour))


def write_captioned(root, count: int = 5, words: int = 3) -> None:
    root.mkdir(parents=True)
    for number in range(count):
        (root / f"{number}.png").write_bytes(png((20 * number, 5, 5)))
        (root / f"{number}.txt").write_text(" ".join(f"word{number}{index}" for index in range(words)))


def palette_mask(number: int) -> Image.Image:
    mask = np.zeros((10, 12), dtype=np.uint8)
    mask[2:6, 2:8], mask[0] = number % 2 + 1, 255
    picture = Image.fromarray(mask, "P")
    picture.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
    return picture


def write_voc(root, names: str | None = None) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in range(3):
        (root / f"JPEGImages/{number}.jpg").write_bytes(png(kind="JPEG"))
        palette_mask(number).save(root / f"SegmentationClass/{number}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("0\n1\n2\n")
    if names:
        (root / "classnames.txt").write_text(names)


def write_mask_dataset(root) -> None:
    columns = {"image": [Image.new("RGB", (12, 10))] * 3, "mask": [palette_mask(number) for number in range(3)]}
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    datasets.DatasetDict({"validation": datasets.Dataset.from_dict(columns, features)}).save_to_disk(root)


def write_stamp(root, folder: str, fold: int, after: int = 0) -> int:
    """Write the next stamp of a folder that falls into ``fold`` and return its number, larger than ``after``."""
    number = next(some for some in range(after + 1, 1000) if hash_fold(f"{folder}/{some}.png") == fold)
    (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (12, 10), (number, 99, 9, 255)).save(root / folder / f"{number}.png")
    name = f"{folder} {number}"
    others = "".join(f"{code}.utf8={code} {name}.\n" for code in LANGUAGES if code != "en")
    (root / folder / f"{number}.txt").write_text(f"A {name}.\n{others}")
    return number


def write_stamps(root) -> None:
    """Write two held-out stamps a folder."""
    for folder in FOLDERS:
        write_stamp(root, folder, fold=0, after=write_stamp(root, folder, fold=0))


def write_benchmark(root, name: str, classes: int = 3) -> None:
    names = "\n".join(f"thing {index}" for index in range(classes))
    templates = "a photo of a {c}.\na {c}."
    write_shards(
        root / name, ["0", "1", "2", "1"], "cls", classnames=names, zeroshot_classification_templates=templates
    )


def write_benchmark_captions(root, name: str) -> None:
    write_shards(root / name, ["a cat\na pet", "a dog\na hound", "an owl"], "txt", dataset_type="retrieval")


def write_poster_data(root) -> None:
    """Write a look-alike of every data set of the poster, in the formats that its suite names."""
    write_benchmark(root, "imagenet1k", classes=1000)
    for name in ["imagenetv2", "caltech101", "pets", "cars", "flowers", "food101", "fgvc_aircraft", "sun397"]:
        write_benchmark(root, name)
    (root / "descriptions").mkdir()
    (root / "descriptions/imagenet1k.json").write_text(json.dumps({"thing 0": ["It is round.", "It is red."]}))
    for name in ("flickr30k", "mscoco_captions"):
        write_benchmark_captions(root, name)
    for code in ("en", "de", "fr", "jp", "ru"):
        write_benchmark_captions(root, f"multilingual_mscoco_captions-{code}")
    write_class_folders(root / "cub")
    write_class_folders(root / "ucf101")
    write_voc(root / "VOC2012")
    write_voc(root / "PascalContext", "sky\ngrass\n")
    write_captioned(root / "long-captions", count=4, words=40)


# Suites and runs

THINGS = {
    "name": "things",
    "evaluator": "zero-shot",
    "data": {"format": "class-folders", "path": "things"},
    "options": {"class_names": {"en": ["apple", "car"], "de": ["Apfel", "Auto"]}, "ks": [1]},
}
CAPTIONS = {"name": "captions", "evaluator": "retrieval", "data": {"format": "captions", "path": "captioned"}}
ABSENT = {**THINGS, "data": {"format": "class-folders", "path": "absent"}}
CHANGED = {**THINGS, "options": {"ks": [2]}}


@pytest.fixture
def folders(tmp_path):
    write_class_folders(tmp_path / "data/things")
    write_captioned(tmp_path / "data/captioned")
    return tmp_path


def suite(*tasks, **content) -> Suite:
    return Suite.from_dict({"title": "Small", "tasks": list(tasks or (THINGS, CAPTIONS)), **content})


def run(folders, model=None, some=None, **options):
    options = {"root": folders / "data", "show_progress_bar": False, **options}
    return run_suite(model or Toy(), some or suite(), folders / "out", **options)


def report(folders) -> str:
    return (folders / "out/report.md").read_text()


def errors(found) -> dict[str, str]:
    return {name: record["error"] for name, record in found.items() if "error" in record}


# Files


def test_suites_that_come_along_can_be_read():
    assert builtin_suites() == ["offline", "poster"]
    assert [task.name for task in Suite.load("offline").tasks][:3] == ["categories", "retrieval", "alignment"]
    assert len(Suite.load("poster").tasks) == 22


@pytest.mark.parametrize("kind", [str, Path])
def test_suite_is_read_from_a_file(tmp_path, kind):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"title": "Mine", "about": "All.", "tasks": [THINGS, CAPTIONS]}))
    loaded = Suite.load(kind(path))
    assert (loaded.title, loaded.about) == ("Mine", "All.")
    assert [task.to_dict() for task in loaded.tasks] == [
        {**THINGS, "about": ""},
        {**CAPTIONS, "about": "", "options": {}},
    ]


TASK = "name: a, evaluator: cka, data: {}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "expected the node content"),
        ("\xff", "codec can't decode"),
        ("", "a suite is a mapping, got None"),
        ("- a", r"a suite is a mapping, got \['a'\]"),
        ("title: only", r"a suite needs \['tasks'\]"),
        ("{title: x, tasks: [], task: 1}", r"a suite has \['about', 'tasks', 'title'\], not \['task'\]"),
        ("{title: x, tasks: []}", "at least one task"),
        ("{title: x, tasks: a}", "'tasks' of a suite is a list, got 'a'"),
        ("{title: 5, tasks: [a]}", "'title' of a suite is a str, got 5"),
        ("{title: x, tasks: [a]}", "a task is a mapping, got 'a'"),
        ("{title: x, tasks: [{name: a, evaluator: cka}]}", r"a task needs \['data'\]"),
        (f"{{title: x, tasks: [{{{TASK}, extra: 1}}]}}", r"'options'\], not \['extra'\]"),
        (f"{{title: x, tasks: [{{{TASK}, about: }}]}}", "'about' of a task is a str, got None"),
        (f"{{title: x, tasks: [{{{TASK}, options: [ks]}}]}}", r"'options' of a task is a dict, got \['ks'\]"),
        ("{title: x, tasks: [{name: a, evaluator: cka, data: voc}]}", "'data' of a task is a dict, got 'voc'"),
        ("{title: x, tasks: [{name: 1, evaluator: cka, data: {}}]}", "'name' of a task is a str, got 1"),
        ("{title: x, tasks: [{name: ../a, evaluator: cka, data: {}}]}", r"of letters, .* got '\.\./a'"),
        (f"{{title: x, tasks: [{{{TASK}}}, {{{TASK}}}]}}", "a name of its own.*'a'"),
        (
            "{title: x, tasks: [{name: a, evaluator: cka, data: {path: 2024-01-01}}]}",
            "task 'a' holds .*date.* in quotes",
        ),
        (f"{{title: x, tasks: [{{{TASK}, options: {{threshold: .inf}}}}]}}", "task 'a' holds what JSON has not"),
        ("[" * 5000, "recursion|nested|depth"),
    ],
)
def test_file_that_is_no_suite_is_refused_with_its_name(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"(?s)bad\.yaml is not a suite: .*{message}"):
        Suite.load(path)


SCENES = {"format": "scenes", "samples": "tuxpaint", "path": "stamps"}
ZERO, RETRIEVAL, SEGMENTATION, THINGS_DATA = "zero-shot", "retrieval", "segmentation", THINGS["data"]
PUBLISHED = {"benchmark": "pets", "languages": "en"}


@pytest.mark.parametrize(
    ("evaluator", "data", "options", "message"),
    [
        ("guess", THINGS_DATA, {}, r"no evaluator 'guess'.*'zero-shot', 'retrieval', 'cka', 'long-context', 'segment"),
        # names that nothing has
        (ZERO, {"path": "x"}, {}, "no format None of ClassifiedImages"),
        (ZERO, {"format": ["voc"]}, {}, r"no format \['voc'\] of ClassifiedImages"),
        (ZERO, {"format": "voc", "path": "x"}, {}, "no format 'voc' of ClassifiedImages.*class-folders"),
        (ZERO, {"format": "class-folders", "folder": "x"}, {}, r"'class-folders' takes \['path'\].*'path'"),
        (ZERO, {"format": "class-folders", "path": "x", 1: 2}, {}, r"'class-folders' takes \['path'\]"),
        (ZERO, THINGS_DATA, {"topk": 3}, r"zero-shot has no option \['topk'\].*templates"),
        (ZERO, THINGS_DATA, {"name": "x"}, r"no option \['name'\]"),
        (ZERO, THINGS_DATA, {1: "x", "name": "x"}, r"no option \[1, 'name'\]"),
        (SEGMENTATION, {**SCENES, "samples": "cats"}, {}, "openmoji or tuxpaint, not of 'cats'"),
        (SEGMENTATION, {**SCENES, "count": 2, "counts": 3}, {}, r"scenes takes \['count', 'objects', .*'counts'"),
        (SEGMENTATION, SCENES, {}, r"scenes takes .*missing a required argument: 'count'"),
        (SEGMENTATION, SCENES, {"windows": {"sides": 3}}, r"windows takes \['short_side', 'window'.*'sides'"),
        (ZERO, THINGS_DATA, {"class_names": {"benchmark": "pets"}}, r"class_names takes \['benchmark', 'languages'\]"),
        # values of the wrong type
        (ZERO, {**THINGS_DATA, "path": 5}, {}, "'path' of the format 'class-folders' is a str or dict, got 5"),
        (ZERO, {**THINGS_DATA, "path": {"en": "x"}}, {}, "'path' of the format 'class-folders' is a str; only"),
        (RETRIEVAL, {"format": "clip-benchmark", "path": {"en": 1}}, {}, "'path' of .* holds a str each, got 1"),
        (ZERO, {**THINGS_DATA, "strict": "yes"}, {}, "'strict' of the data is a bool, got 'yes'"),
        (
            RETRIEVAL,
            {"format": "openmoji", "languages": ["en", False]},
            {},
            "'languages' .* a str each, got False",
        ),
        (SEGMENTATION, {**SCENES, "count": "2"}, {}, "'count' of the format 'scenes' is a int, got '2'"),
        (SEGMENTATION, SCENES, {"windows": {"window": 2.5}}, "'window' of windows is a int, got 2.5"),
        (ZERO, THINGS_DATA, {"ks": 5}, "'ks' of the options is a list, got 5"),
        (ZERO, THINGS_DATA, {"ks": [True]}, "'ks' of the options holds a int each, got True"),
        (ZERO, THINGS_DATA, {"renormalize": 0}, "'renormalize' of the options is a bool, got 0"),
        (ZERO, THINGS_DATA, {"class_names": PUBLISHED}, "'languages' of class_names is a list, got 'en'"),
        (ZERO, THINGS_DATA, {"class_names": "apple"}, "'class_names' of the options is a list or dict, got 'apple'"),
        (
            ZERO,
            THINGS_DATA,
            {"class_names": ["apple", False]},
            "class name 1 is False .bool., not a text; write",
        ),
        (ZERO, THINGS_DATA, {"class_names": {"en": ["apple", 2020]}}, "class name 1 in en is 2020 .int., not a text"),
        (ZERO, THINGS_DATA, {"class_names": {False: ["eple", "bil"]}}, "a language is a text, got False.*'no'"),
        (ZERO, THINGS_DATA, {"templates": ["{}", 5]}, "template 1 is 5 .int., not a text"),
        (ZERO, THINGS_DATA, {"templates": {"en": "a {}"}, "class_names": {"en": ["a", "b"]}}, "templates are a list"),
    ],
)
def test_task_that_cannot_be_made_says_what_it_takes(folders, evaluator, data, options, message):
    write_stamp(folders / "data/stamps", "animals", fold=0)
    (task,) = suite({"name": "a", "evaluator": evaluator, "data": data, "options": options}).tasks
    with pytest.raises(ValueError, match=message):
        make_evaluator(task, folders / "data", 8, False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "things.json: not valid JSON"),
        ("[" * 100_000, "things.json: not valid JSON"),
        ("[]", "should hold an object"),
        ('{"a": "b"}', "list of sentences"),
        ('{"apple": ["It is red.", 5]}', r"description 1 of 'apple' in .*things\.json is 5 .int., not a text"),
    ],
)
def test_descriptions_of_another_form_are_refused(folders, content, message):
    (folders / "data/things.json").write_text(content)
    (task,) = suite({**THINGS, "options": {"descriptions": "things.json"}}).tasks
    with pytest.raises(ValueError, match=message):
        make_evaluator(task, folders / "data", 8, False)


# Formats

SMALL_SCENES = {**SCENES, "count": 2, "side": 64, "languages": ["en", "de"]}
WINDOWS = {"short_side": 32, "window": 32, "stride": 32}
FORMATS = [
    ("zero-shot", {"format": "clip-benchmark", "path": "pets"}, {"descriptions": "described.json"}),
    ("zero-shot", {"format": "class-folders", "path": "things"}, {}),
    ("zero-shot", {"format": "tuxpaint", "path": "stamps"}, {}),
    ("retrieval", {"format": "clip-benchmark", "path": "coco-en"}, {}),
    ("retrieval", {"format": "clip-benchmark", "path": {"en": "coco-en", "de": "coco-de"}}, {}),
    ("retrieval", {"format": "tuxpaint", "path": "stamps", "languages": ["en", "ru"]}, {}),
    ("retrieval", {"format": "openmoji", "languages": ["en", "fr"]}, {}),
    ("cka", {"format": "captions", "path": "dozen"}, {}),
    ("long-context", {**SMALL_SCENES, "objects": 6}, {"ks": [1, 2]}),
    ("segmentation", {"format": "voc", "path": "voc"}, {"windows": WINDOWS}),
    ("segmentation", {"format": "datasets", "path": "masks", "class_names": ["sky", "grass"]}, {"windows": WINDOWS}),
    ("segmentation", SMALL_SCENES, {"windows": WINDOWS}),
]


def test_every_format_is_read_and_evaluated(folders, monkeypatch):
    data = folders / "data"
    write_stamps(data / "stamps")
    write_benchmark(data, "pets")
    write_benchmark_captions(data, "coco-en")
    write_benchmark_captions(data, "coco-de")
    write_captioned(data / "dozen", count=12)
    write_voc(data / "voc", "sky\ngrass\n")
    write_mask_dataset(data / "masks")
    (data / "described.json").write_text('{"thing 1": ["It is red."]}')
    monkeypatch.setattr("freezealign.evaluation.suites.tasks.load_openmoji", lambda: load_tuxpaint(data / "stamps"))
    assert {(some["format"], EVALUATORS[name][1]) for name, some, _ in FORMATS} == set(READERS)

    tasks = [
        {"name": f"{number}", "evaluator": evaluator, "data": some, "options": options}
        for number, (evaluator, some, options) in enumerate(FORMATS)
    ]
    found = list(run(folders, some=suite(*tasks)).values())
    assert [record.get("error") for record in found] == [None] * len(FORMATS)
    results = [record["results"] for record in found]
    assert "descriptions of 1 of 3 classes" in results[0]["protocol"]
    assert [results[number]["n_images"] for number in (0, 1, 2, 3, 9, 10)] == [4, 6, 30, 3, 3, 3]
    assert [results[number]["n_classes"] for number in (0, 1, 2, 9, 10)] == [3, 2, 15, 2, 2]
    assert [found[number]["languages"] for number in (4, 5, 6)] == [["en", "de"], ["en", "ru"], ["en", "fr"]]
    assert (results[5]["ru_n_texts"], results[7]["n"], results[11]["de_n_classes"]) == (30, 12, 30)


def test_categories_of_stamps_are_all_folders_whatever_the_fold_holds(tmp_path):
    for folder, fold in (("animals", 1), ("food", 0), ("town", 1)):
        write_stamp(tmp_path / "stamps", folder, fold)
    read = read_data(ClassifiedImages, {"format": "tuxpaint", "path": "stamps", "fold": 1}, tmp_path)
    assert read.class_names == ["animals", "food", "town"]
    assert read.labels == [0, 2]


def smaller(task, windows=None, **data):
    """Return a task with fewer scenes, on data elsewhere."""
    content = task.to_dict()
    content["data"] |= data if "count" in content["data"] else {"path": data["path"]}
    if windows and "windows" in content["options"]:
        content["options"]["windows"] = windows
    return content


def test_offline_suite_runs_on_look_alikes_of_the_stamps(tmp_path):
    write_stamps(tmp_path / "data/stamps")
    tasks = [smaller(task, WINDOWS, path="stamps", count=2, side=64) for task in Suite.load("offline").tasks]
    found = run(tmp_path, some=suite(*tasks))
    assert errors(found) == {}
    assert found["categories"]["results"]["zh_n_classes"] == len(FOLDERS)
    assert found["retrieval"]["languages"] == list(LANGUAGES)
    assert found["long-context"]["languages"] == ["en", "es", "zh_CN", "fr", "de", "ru"]
    assert "argmax over present classes" in found["segmentation"]["results"]["protocol"]
    assert found["segmentation-all-classes"]["results"]["ru_n_classes"] == 30


@pytest.mark.slow
@pytest.mark.skipif("FREEZEALIGN_STAMPS" not in os.environ, reason="FREEZEALIGN_STAMPS names the folder of the stamps")
def test_offline_suite_runs_on_real_stamps(tmp_path):
    stamps = str(Path(os.environ["FREEZEALIGN_STAMPS"]).resolve())
    assert read_data(ClassifiedImages, {"format": "tuxpaint", "path": stamps}, tmp_path).class_names == FOLDERS
    found = run(tmp_path, some=suite(*(smaller(task, path=stamps, count=2) for task in Suite.load("offline").tasks)))
    assert errors(found) == {}
    assert found["categories"]["results"]["zh_n_classes"] == len(FOLDERS)
    assert found["retrieval"]["results"]["en_n_images"] > 100


@pytest.mark.slow
def test_poster_runs_on_look_alikes_of_its_data(tmp_path):
    pytest.importorskip("clip_benchmark")
    write_poster_data(tmp_path / "data")
    found = run(tmp_path, some=Suite.load("poster"))
    assert list(found) == [task.name for task in Suite.load("poster").tasks]
    assert errors(found) == {}
    results = {name: record["results"] for name, record in found.items()}
    assert "descriptions of 1 of 1000 classes" in results["imagenet-vdt"]["protocol"]
    assert results["imagenet-multilingual"]["en_n_classes"] == 1000
    assert results["imagenet-multilingual"]["de_n_classes"] == 738
    assert found["xtd10"]["languages"] == ["en", "de", "fr", "jp", "ru"]
    assert (results["coco"]["n_images"], results["coco"]["n_texts"]) == (3, 5)
    assert (results["cub"]["n_classes"], results["ucf101"]["n_images"]) == (2, 6)
    assert (results["voc"]["n_classes"], results["pascal-context"]["n_classes"]) == (20, 2)
    assert results["voc-multilingual"]["ru_miou_chance"] > 0
    assert results["long-captions"]["at_8_n_cut"] == 4 and results["long-captions"]["longest"] == 40


# What of a task's data cannot be read


def spoil(path: Path) -> None:
    path.write_bytes(b"no picture")


def spoil_shard(root: Path) -> None:
    write_shards(root / "bench", ["0", "cat", "1"], "cls", classnames="a\nb")


def spoil_masks(root: Path) -> None:
    write_voc(root / "voc", "sky\ngrass\n")
    spoil(root / "voc/SegmentationClass/0.png")
    (root / "voc/JPEGImages/2.jpg").unlink()


def spoil_table(root: Path) -> None:
    lines = [{"image": "captioned/0.png", "text": text} for text in ("a cat", ["a dog", 5], "  ", "an owl")]
    (root / "rows.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, {"image": 3, "text": "a cow"}])
    )


def spoil_stamps(root: Path) -> None:
    write_stamps(root / "stamps")
    spoil(sorted((root / "stamps/animals").glob("*.png"))[0])


@pytest.mark.parametrize(
    ("spoiled", "evaluator", "data", "found", "reasons"),
    [
        (lambda root: spoil(root / "things/car/1.png"), ZERO, THINGS_DATA, 6, {4: "not an image: "}),
        (
            spoil_shard,
            ZERO,
            {"format": "clip-benchmark", "path": "bench"},
            3,
            {1: "is 'cat', not the index of a class"},
        ),
        (lambda root: spoil(root / "captioned/2.png"), RETRIEVAL, CAPTIONS["data"], 5, {2: "not an image: "}),
        (spoil_table, RETRIEVAL, {"format": "captions", "path": "rows.jsonl"}, 5, {1: "5", 2: "is empty", 4: "3"}),
        (spoil_masks, SEGMENTATION, {"format": "voc", "path": "voc"}, 3, {0: "cannot read the mask", 2: "is missing"}),
        (spoil_stamps, ZERO, {"format": "tuxpaint", "path": "stamps"}, 30, {0: "not an image"}),
    ],
)
def test_bad_items_are_left_out_counted_and_listed(folders, spoiled, evaluator, data, found, reasons):
    class Reader(Toy):
        """Reads its images, as every real model does."""

        def encode_image(self, items, **options):
            for item in items:
                read_item(item, "image")
            return super().encode_image(items, **options)

    spoiled(folders / "data")
    task, lines = {"name": "bad", "evaluator": evaluator, "data": data}, []
    record = run(folders, Reader(), suite(task), announce=lines.append)["bad"]
    assert [entry["index"] for entry in record["skipped"]] == list(reasons)
    assert all(reasons[entry["index"]] in entry["reason"] for entry in record["skipped"])
    assert record["results"]["n_images"] + len(record["skipped"]) == found
    line = f"Left out {len(reasons)}; the first is item {next(iter(reasons))}: {record['skipped'][0]['reason']}"
    assert line in report(folders) and lines[1] == f"    {line}"
    assert json.loads((folders / "out/model/bad/result.json").read_text())["skipped"] == record["skipped"]
    strict = run(folders, Reader(), suite({**task, "data": {**data, "strict": True}}))["bad"]
    assert f"InputError: item {next(iter(reasons))} of {found}: " in strict["error"]


def test_failure_that_no_image_is_to_blame_for_is_noted_as_it_is(folders):
    class Broken(Toy):
        def encode_text(self, texts, **_):
            self.calls += 1
            raise InputError("the text is empty")

    class Odd(Toy):
        def encode_image(self, items, **_):
            raise KeyError("image")

    broken = Broken()
    assert errors(run(folders, broken)) == dict.fromkeys(["things", "captions"], "InputError: the text is empty")
    assert broken.calls == 2  # nothing is tried again
    assert errors(run(folders, Odd())) == dict.fromkeys(["things", "captions"], "KeyError: 'image'")


# Reports


def test_results_pictures_and_reports_are_written(folders):
    found = run(folders, name="toy")
    place = folders / "out/toy"
    assert json.loads((place / "things/result.json").read_text()) == found["things"]
    assert sorted(path.name for path in (place / "things").iterdir()) == ["confusion.png", "result.json"]
    results = found["captions"]["results"]
    score = f"{results['t2i_R@1']:.3f} [{results['t2i_R@1_low']:.3f}–{results['t2i_R@1_high']:.3f}]"
    assert f"| captions | t2i_R@1 | {score} |" in report(folders)
    assert f"| all | 5 | 5 | {score} |" in report(folders)
    assert "Protocol: cosine; a tie counts against the model" in report(folders)
    assert "![things, toy, confusion](toy/things/confusion.png)" in report(folders)


def test_page_holds_its_pictures_and_no_tags_of_others(folders):
    tasks = ({**THINGS, "about": "<script>alert(1)</script>"}, CAPTIONS)
    run(folders, some=suite(*tasks, title="A < B & <i>C", about="<img src='x.png'>"), name="toy")
    page = (folders / "out/report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<title>A &lt; B &amp; &lt;i&gt;C</title>" in page and "<i>" not in page
    (picture,) = re.findall(r"<img[^>]*>", page)
    (content,) = re.findall(r'src="data:image/png;base64,([^"]*)"', picture)
    assert base64.b64decode(content) == (folders / "out/toy/things/confusion.png").read_bytes()
    assert not re.search(r"<[^>]*(href|srcset)|url\(|@import", page)


def test_picture_that_a_suite_links_to_stays_a_link(folders):
    run(folders, some=suite(CAPTIONS, about="![logo](https://example.org/logo.png)"))
    assert '<img src="https://example.org/logo.png" alt="logo"' in (folders / "out/report.html").read_text()


def test_overview_mean_and_gap_are_those_of_a_hand_calculation(folders):
    right = {"apple": (1.0, 0.0), "car": (0.0, 1.0)}
    names = {"en": ["apple", "car"], "de": ["Apfel", "Auto"], "fr": ["pomme", "voiture"]}
    some = suite({**THINGS, "options": {"class_names": names, "ks": [1]}})
    # In German the one takes each for the other; in French a tie counts against it, so that it knows apples only.
    one = Oracle(**right, Apfel=(0.0, 1.0), Auto=(1.0, 0.0), pomme=(1.0, 0.0), voiture=(-1.0, 0.0))
    apples = dict.fromkeys(("apple", "Apfel", "pomme"), right["apple"])
    two = Oracle(**apples, **dict.fromkeys(("Auto", "voiture"), right["car"]), car=(-1.0, 0.0))
    for name, model in (("one", one), ("two", two)):
        run(folders, model, some, name=name)
    written = report(folders)
    assert "| task | metric | one | two |\n" in written
    assert re.search(r"\| things \| en_top1 \| 1\.000 \[1\.000–1\.000\] \| 0\.500 \[[^|]*\] \|\n", written)
    assert "|  | mean of 2 other languages | 0.250 | 1.000 |\n" in written
    first, second = written.split("### two")
    assert "| mean of the 2 others |  |  | 0.250 | 0.250 |\n| gap to en |  |  | -0.750 | -0.750 |\n" in first
    assert "| mean of the 2 others |  |  | 1.000 | 1.000 |\n| gap to en |  |  | +0.500 | +0.500 |\n" in second
    assert "| chance |  |  | 0.500 |  |" in first


def test_budgets_of_long_captions_have_their_table(folders):
    task = {**CAPTIONS, "evaluator": "long-context", "options": {"budgets": [1, 2]}}
    found = run(folders, some=suite(task))["captions"]["results"]
    assert "| language | words | captions cut | t2i_R@1 |" in report(folders)
    assert re.search(rf"\| all \| 1 \| 5 of 5 \| {found['at_1_t2i_R@1']:.3f} \[.*\n\| all \| 2 \|", report(folders))
    assert "![captions, model, curve](model/captions/curve.png)" in report(folders)


def test_result_of_an_older_suite_is_not_reported(folders):
    run(folders, name="old")
    run(folders, some=suite(CHANGED, CAPTIONS), name="new")
    things = report(folders).split("## things")[1].split("## captions")[0]
    assert "### new" in things and "### old" not in things
    assert re.search(
        r"\| task \| metric \| new \| old \|\n.*\n\| things \| top2 \| 1\.000 [^|]* \|  \|", report(folders)
    )


# What is run again, and what is not


def set_aside(folders) -> None:
    path = folders / "out/model/things/result.json"
    path.rename(path.with_suffix(".old"))


@pytest.mark.parametrize(
    ("between", "tasks", "options", "calls"),
    [
        (None, (THINGS, CAPTIONS), {}, 0),
        (None, (CAPTIONS,), {}, 0),
        (None, (CHANGED, CAPTIONS), {}, 1),
        (None, (THINGS, {**CAPTIONS, "about": "More."}), {}, 1),
        (None, (THINGS, CAPTIONS), {"identity": "another"}, 3),
        (None, (THINGS, CAPTIONS), {"name": "another"}, 3),
        (None, (THINGS, CAPTIONS), {"identity": "another", "tasks": ["captions"]}, 1),
        (set_aside, (THINGS, CAPTIONS), {}, 2),
    ],
)
def test_only_what_is_not_finished_is_run(folders, between, tasks, options, calls):
    first, second, lines = Toy(), Toy(), []
    before = run(folders, first)
    if between:
        between(folders)
    after = run(folders, second, suite(*tasks), announce=lines.append, **options)
    assert (first.calls, second.calls) == (3, calls)
    assert any("running" in line for line in lines) == (calls > 0)
    assert list(after) == options.get("tasks", [task["name"] for task in tasks])
    assert calls or all(record == before[name] for name, record in after.items())


def test_a_model_with_other_weights_is_run_again(folders, callable_model):
    def lines() -> list[str]:
        said = []
        run(folders, callable_model, suite(CAPTIONS), announce=said.append)
        return said

    assert lines() == ["[1/1] captions: running"]
    assert lines() == ["[1/1] captions: finished earlier"]
    with torch.no_grad():
        next(parameter for parameter in callable_model.parameters() if parameter.requires_grad).add_(1)
    assert lines() == ["[1/1] captions: running"]


def test_suite_goes_on_after_a_kill_at_any_call(folders, monkeypatch):
    def draw(path, *_):
        write_atomically(path, lambda file: file.write(b"picture"))

    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    monkeypatch.setattr("freezealign.evaluation.zero_shot.draw_confusion", draw)
    monkeypatch.setattr("freezealign.evaluation.long_context.draw_curves", draw)
    data = {"root": folders / "data", "show_progress_bar": False}
    tasks = (THINGS, ABSENT | {"name": "absent"}, {**CAPTIONS, "evaluator": "long-context"})
    check_every_kill(lambda folder: run_suite(Toy(), suite(*tasks), folder, **data), folders / "kills", 30)


def test_one_file_written_from_many_places_at_once_is_whole(tmp_path):
    path, contents = tmp_path / "report.md", [bytes([number]) * (1000 + number) for number in range(8)]

    def write(content):
        for _ in range(40):
            write_atomically(path, lambda file: [file.write(content[:500]), file.write(content[500:])])
            assert path.read_bytes() in contents

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, contents))
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]


def test_evaluators_files_are_whole_after_a_kill_at_any_call(folders, monkeypatch):
    (task,) = suite(THINGS).tasks
    evaluator, _ = make_evaluator(task, folders / "data", 8, False)
    check_every_kill(lambda folder: evaluator(Toy(), folder), folders / "kills", 6)


@pytest.mark.parametrize("kill", [1, 2, 3])
def test_kill_while_a_file_is_written_leaves_no_half(folders, monkeypatch, kill):
    """Also if the next run is of another task, which draws no such picture."""
    left = iter(range(1, 9))

    def fsync(_):
        if next(left) == kill:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # the process is dead: nothing is tidied up
        with pytest.raises(Killed):
            run(folders)
    place = folders / "out/model/things"
    for path in place.glob("*.*"):
        assert path.name.startswith(".") or (
            Image.open(path) if path.suffix == ".png" else json.loads(path.read_text())
        )
    assert errors(run(folders, some=suite({**CAPTIONS, "name": "things"}))) == {}
    assert [path.name for path in place.iterdir()] == ["result.json"]


@pytest.mark.parametrize("kill", [1, 2])
def test_report_is_the_old_or_the_new_one_after_a_kill(folders, monkeypatch, kill):
    def reports() -> list[bytes]:
        return [(folders / f"out/report.{kind}").read_bytes() for kind in ("md", "html")]

    def fsync(_):
        if next(left) == kill:
            raise Killed

    left = iter((1, 2))
    run(folders, some=suite(CAPTIONS))
    old = reports()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        with pytest.raises(Killed):
            run(folders, some=suite(CAPTIONS, title="New"))
    killed = reports()
    run(folders, some=suite(CAPTIONS, title="New"))
    assert killed == [*reports()[: kill - 1], *old[kill - 1 :]]


def test_second_process_of_a_model_is_refused(folders):
    with exclusive(folders / "out/model"), pytest.raises(RuntimeError, match="another process is writing"):
        run(folders)
    assert errors(run(folders)) == {}


GOOD = {"languages": [""], "columns": ["top1"], "results": {"top1": 0.5, "protocol": "cosine"}}


@pytest.mark.parametrize("name", ["model", "other"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff", "not valid JSON"),
        ([], "it holds no object"),
        ({**GOOD, "task_identity": 5}, "'task_identity' is 5"),
        ({"error": 5}, "'error' is 5"),
        ({**GOOD, "results": [1]}, "'results' is"),
        ({**GOOD, "columns": "top1"}, "'columns' is 'top1'"),
        ({**GOOD, "columns": []}, "its scores are damaged"),
        ({**GOOD, "languages": [["en"]]}, "its scores are damaged: .*missing"),
        ({**GOOD, "results": {"top1": 0.5}}, r"its scores are damaged: \['protocol'\] missing"),
        ({**GOOD, "results": {"top1": "0.5", "protocol": "x"}}, r"damaged: .*\['top1'\] of another kind"),
        ({**GOOD, "results": {"top1": 0.5, "top1_low": [], "protocol": "x"}}, r"\['top1_low'\] of another kind"),
        ({**GOOD, "skipped": [1]}, "'skipped' is damaged"),
        ({**GOOD, "skipped": 1}, "'skipped' is damaged"),
        ({**GOOD, "skipped": [{"index": 1}]}, "'skipped' is damaged"),
    ],
)
def test_damaged_result_is_an_error_that_names_it_until_it_is_removed(folders, name, content, message):
    run(folders, some=suite(CAPTIONS))
    path = folders / "out/model/captions/result.json"
    if isinstance(content, dict):
        content = {**{key: json.loads(path.read_text())[key] for key in ("task_identity", "model_identity")}, **content}
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ValueError, match=rf"model/captions/result\.json: .*{message}.* Remove it, and the task"):
        run(folders, some=suite(CAPTIONS), name=name)
    path.unlink()
    again = Toy()
    assert errors(run(folders, again, suite(CAPTIONS))) == {} and again.calls == 1


def test_score_that_is_none_is_shown_as_none(folders):
    names = {"en": ["apple", "car"], "de": ["Apfel", "Auto"]}
    run(folders, some=suite({**THINGS, "options": {"class_names": names, "ks": [1]}}))
    path = folders / "out/model/things/result.json"
    record = json.loads(path.read_text())
    record["results"] |= {"de_top1": None, "en_mean_per_class": None}
    path.write_text(json.dumps(record))
    run(folders, some=suite({**THINGS, "options": {"class_names": names, "ks": [1]}}))
    assert "|  | mean of 1 other languages | none |" in report(folders)
    assert re.search(r"\| gap to en \|  \|  \| none \| none \|", report(folders))


def test_pictures_of_another_task_are_not_reported(folders):
    run(folders)
    retrieval = {**CAPTIONS, "name": "things"}
    run(folders, some=suite(retrieval))
    assert [path.name for path in (folders / "out/model/things").iterdir()] == ["result.json"]
    assert "confusion" not in report(folders)


def test_missing_data_is_noted_and_tried_again(folders):
    some, lines = suite(ABSENT, CAPTIONS), []
    found = run(folders, some=some, name="toy", announce=lines.append)
    assert "absent" in found["things"]["error"]
    assert "results" in found["captions"]
    assert lines[1] == f"    not run: {found['things']['error']}"
    assert f"### toy\n\nNot run: {found['things']['error']}" in report(folders)
    assert "| things |  | not run |" in report(folders)
    write_class_folders(folders / "data/absent")
    again = Toy()
    assert "results" in run(folders, again, some, name="toy")["things"]
    assert again.calls == 2 and "Not run" not in report(folders)


def test_model_that_does_not_suit_a_task_is_noted(folders):
    write_voc(folders / "data/voc")
    segmentation = {"name": "voc", "evaluator": "segmentation", "data": {"format": "voc", "path": "voc"}}
    words = dict.fromkeys(("apple", "car", "Apfel", "Auto"), (1.0, 0.0))
    found = run(folders, Oracle(**words), suite(segmentation, THINGS))
    assert list(errors(found)) == ["voc"] and "Oracle has none" in found["voc"]["error"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tasks": ["captions", "nothing"]}, ValueError, r"no task \['nothing'\]; it has \['things', 'captions'\]"),
        ({"some": "nowhere"}, FileNotFoundError, r"no suite 'nowhere': .*\['offline', 'poster'\]"),
        *(({"name": name}, ValueError, f"got {re.escape(repr(name))}") for name in ("../up", "a/b", "", ".hidden")),
    ],
)
def test_what_cannot_be_run_at_all_writes_nothing(folders, options, error, message):
    with pytest.raises(error, match=message):
        run(folders, **options)
    assert not (folders / "out").exists()


def test_tasks_that_were_not_chosen_are_reported_as_not_run(folders):
    run(folders, tasks=["captions"])
    assert "## things\n\nNot run yet." in report(folders)
