"""Suites: evaluations as data, run one by one, with one report."""

from __future__ import annotations

import io
import json
import re
import tarfile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from freezealign.cli import app
from freezealign.evaluation.suites import Suite, run_suite
from freezealign.evaluation.suites.suite import builtin_suites
from freezealign.evaluation.suites.tasks import make_evaluator

COLOURS = {"apple": (200, 30, 30), "car": (30, 30, 200)}


class Toy:
    """A model that embeds by the sum of characters or the mean colour, at once."""

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


def png(colour=(90, 90, 90), suffix: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 10), colour).save(stream, suffix)
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
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(3):
            (root / name / f"{number}.png").write_bytes(png(colour))


def write_voc(root, names: str | None = None) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in range(3):
        (root / f"JPEGImages/{number}.jpg").write_bytes(png(suffix="JPEG"))
        mask = np.zeros((10, 12), dtype=np.uint8)
        mask[2:6, 2:8], mask[0] = number % 2 + 1, 255
        picture = Image.fromarray(mask).convert("P")
        picture.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
        picture.putdata(mask.flatten().tolist())
        picture.save(root / f"SegmentationClass/{number}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("0\n1\n2\n")
    if names:
        (root / "classnames.txt").write_text(names)


def write_poster_data(root) -> None:
    """Write a look-alike of every data set of the poster, in the formats that its suite names."""
    for name in (
        "imagenet1k",
        "imagenetv2",
        "caltech101",
        "pets",
        "cars",
        "flowers",
        "food101",
        "fgvc_aircraft",
        "sun397",
    ):
        names = "\n".join(f"thing {index}" for index in range(1000 if name == "imagenet1k" else 3))
        files = {"classnames": names, "zeroshot_classification_templates": "a photo of a {c}.\na {c}."}
        write_shards(root / name, ["0", "1", "2", "1"], "cls", **files)
    (root / "descriptions").mkdir()
    (root / "descriptions/imagenet1k.json").write_text(json.dumps({"thing 0": ["It is round.", "It is red."]}))
    for name in (
        "flickr30k",
        "mscoco_captions",
        *(f"multilingual_mscoco_captions-{code}" for code in ("en", "de", "fr", "jp", "ru")),
    ):
        write_shards(root / name, ["a cat\na pet", "a dog\na hound", "an owl"], "txt", dataset_type="retrieval")
    write_class_folders(root / "cub")
    write_class_folders(root / "ucf101")
    write_voc(root / "VOC2012")
    write_voc(root / "PascalContext", "sky\ngrass\n")
    (root / "long-captions").mkdir()
    for number in range(4):
        (root / f"long-captions/{number}.png").write_bytes(png())
        (root / f"long-captions/{number}.txt").write_text(" ".join(f"word{number}{index}" for index in range(40)))


@pytest.fixture
def folders(tmp_path):
    write_class_folders(tmp_path / "data/things")
    (tmp_path / "data/captioned").mkdir()
    for number in range(5):
        (tmp_path / f"data/captioned/{number}.png").write_bytes(png((40 * number, 5, 5)))
        (tmp_path / f"data/captioned/{number}.txt").write_text("a red apple " * (number + 1))
    return tmp_path


TASKS = [
    {
        "name": "things",
        "evaluator": "zero-shot",
        "data": {"format": "class-folders", "path": "things"},
        "options": {"class_names": {"en": ["apple", "car"], "de": ["Apfel", "Auto"]}, "ks": [1]},
    },
    {"name": "captions", "evaluator": "retrieval", "data": {"format": "captions", "path": "captioned"}},
]


def suite(*tasks, **content) -> Suite:
    return Suite.from_dict({"title": "Small", "tasks": list(tasks or TASKS), **content})


def run(folders, model=None, some=None, **options):
    options = {"root": folders / "data", "show_progress_bar": False, **options}
    return run_suite(model or Toy(), some or suite(), folders / "out", **options)


# Files


def test_suites_that_come_along_can_be_read():
    assert builtin_suites() == ["offline", "poster"]
    for name in builtin_suites():
        assert len(Suite.load(name).tasks) > 5


def test_suite_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"title": "Mine", "tasks": TASKS}))
    assert [task.name for task in Suite.load(path).tasks] == ["things", "captions"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not a suite"),
        ("title: only", r"needs \['tasks'\]"),
        ("{title: x, tasks: []}", "at least one task"),
        ("{title: x, tasks: [{name: a, evaluator: cka}]}", r"needs \['data'\]"),
        ("{title: x, tasks: [{name: a, evaluator: cka, data: {}, extra: 1}]}", "extra"),
        ("{title: x, tasks: [{name: ../a, evaluator: cka, data: {}}]}", r"\.\./a"),
        (
            "{title: x, tasks: [{name: a, evaluator: c, data: {}}, {name: a, evaluator: c, data: {}}]}",
            "name of its own",
        ),
    ],
)
def test_file_that_is_no_suite_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Suite.load(path)


def test_suite_that_is_nowhere_names_those_that_are():
    with pytest.raises(FileNotFoundError, match="poster"):
        Suite.load("nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluator": "guess"}, "no evaluator 'guess'.*zero-shot"),
        ({"data": {"format": "voc", "path": "x"}}, "no format 'voc' of ClassifiedImages.*class-folders"),
        ({"data": {"format": "class-folders", "folder": "x"}}, r"takes \['path'\]"),
        ({"options": {"topk": 3}}, r"no option \['topk'\].*templates"),
    ],
)
def test_task_that_names_nothing_known_is_refused(folders, change, message):
    (task,) = suite({**TASKS[0], **change}).tasks
    with pytest.raises(ValueError, match=message):
        make_evaluator(task, folders / "data", 8, False)


# Runs


def test_results_pictures_and_reports_are_written(folders):
    found = run(folders, name="toy")
    place = folders / "out/toy"
    assert json.loads((place / "things/result.json").read_text())["results"] == found["things"]["results"]
    assert (place / "things/confusion.png").is_file()
    report = (folders / "out/report.md").read_text()
    results = found["things"]["results"]
    assert f"{results['en_top1']:.3f} [{results['en_top1_low']:.3f}–{results['en_top1_high']:.3f}]" in report
    gap = results["de_top1"] - results["en_top1"]
    assert f"| gap to en |  |  | {gap:+.3f} |" in report
    assert "Protocol: cosine; a tie counts against the model" in report


def test_page_needs_no_other_file_and_runs_nothing(folders):
    tasks = [{**TASKS[0], "about": "<script>alert(1)</script>"}, TASKS[1]]
    run(folders, some=suite(*tasks), name="toy")
    page = (folders / "out/report.html").read_text()
    assert "<script>" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)', page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_finished_tasks_are_not_run_again(folders):
    first, second = Toy(), Toy()
    assert run(folders, first) == run(folders, second)
    assert first.calls > 0
    assert second.calls == 0


def test_other_task_or_model_is_run_again(folders):
    run(folders)
    changed, other = Toy(), Toy()
    run(folders, changed, suite({**TASKS[0], "options": {"ks": [2]}}, TASKS[1]))
    assert changed.calls == 1
    run(folders, other, identity="another")
    assert other.calls == 3


def test_interrupted_suite_goes_on(folders):
    class Killed(Toy):
        def encode_text(self, texts, **options):
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().encode_text(texts, **options)

    with pytest.raises(KeyboardInterrupt):
        run(folders, Killed())
    again = Toy()
    assert "results" in run(folders, again)["captions"]
    assert again.calls == 1


def test_missing_data_is_noted_and_tried_again(folders):
    absent = {**TASKS[0], "data": {"format": "class-folders", "path": "absent"}}
    found = run(folders, some=suite(absent, TASKS[1]), name="toy")
    assert "absent" in found["things"]["error"]
    assert "results" in found["captions"]
    assert f"Not run: {found['things']['error']}" in (folders / "out/report.md").read_text()
    write_class_folders(folders / "data/absent")
    assert "results" in run(folders, some=suite(absent, TASKS[1]), name="toy")["things"]


def test_models_stand_side_by_side(folders):
    class Other(Toy):
        def encode_image(self, items, **_):
            return super().encode_image(items).flip(0)

    found = {name: run(folders, model, name=name) for name, model in (("one", Toy()), ("two", Other()))}
    report = (folders / "out/report.md").read_text()
    assert "| task | metric | one | two |" in report
    means = [f"{found[name]['things']['results']['de_top1']:.3f}" for name in ("one", "two")]
    assert f"|  | mean of 1 other languages | {means[0]} | {means[1]} |" in report


def test_result_of_an_older_suite_is_not_reported(folders):
    run(folders, name="old")
    changed = suite({**TASKS[0], "options": {"ks": [2]}}, TASKS[1])
    run(folders, some=changed, name="new")
    overview = (folders / "out/report.md").read_text().split("## things")[0]
    assert re.search(r"\| things \| top2 \| 1.000 \[1.000–1.000\] \|", overview.replace("|  |", "|"))


def test_only_chosen_tasks_are_run(folders):
    assert list(run(folders, tasks=["captions"])) == ["captions"]
    with pytest.raises(ValueError, match=r"no task \['nothing'\]; it has \['things', 'captions'\]"):
        run(folders, tasks=["nothing"])


def test_model_name_is_no_path(folders):
    with pytest.raises(ValueError, match=r"\.\./up"):
        run(folders, name="../up")


@pytest.mark.slow
def test_poster_runs_on_look_alikes_of_its_data(tmp_path):
    pytest.importorskip("clip_benchmark")
    write_poster_data(tmp_path / "data")
    found = run(tmp_path, some=Suite.load("poster"))
    assert {name: record["error"] for name, record in found.items() if "error" in record} == {}
    assert "descriptions of 1 of 1000 classes" in found["imagenet-vdt"]["results"]["protocol"]
    assert found["imagenet-multilingual"]["results"]["de_n_classes"] == 738
    assert found["xtd10"]["languages"] == ["en", "de", "fr", "jp", "ru"]
    assert found["voc-multilingual"]["results"]["ru_miou_chance"] > 0


# Command line


def test_command_line_evaluates_a_saved_model(model, folders):
    model.save_pretrained(folders / "tiny")
    (folders / "small.yaml").write_text(yaml.safe_dump({"title": "Small", "tasks": TASKS}))
    command = [
        "eval",
        folders / "tiny",
        folders / "small.yaml",
        "--output",
        folders / "out",
        "--data",
        folders / "data",
    ]
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 0, result.output
    assert "2 of 2 tasks" in result.output
    assert (folders / "out/tiny/captions/result.json").is_file()
    again = CliRunner().invoke(app, list(map(str, command)))
    assert again.output.count("finished earlier") == 2


def test_command_line_says_what_could_not_be_run(model, folders):
    model.save_pretrained(folders / "tiny")
    absent = {**TASKS[0], "data": {"format": "class-folders", "path": "absent"}}
    (folders / "small.yaml").write_text(yaml.safe_dump({"title": "Small", "tasks": [absent]}))
    command = ["eval", folders / "tiny", folders / "small.yaml", "--output", folders / "out"]
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 1
    assert "absent" in result.output
