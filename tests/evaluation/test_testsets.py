"""Test sets: every public format gives its images, labels, captions and masks, and hides no gap."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from freezealign.evaluation.masks import read_mask
from freezealign.evaluation.prompts import ClassPrompts
from freezealign.evaluation.testsets import (
    CaptionedImages,
    ClassifiedImages,
    MaskedImages,
    benchmark_class_names,
    benchmark_templates,
    read_benchmark_captions,
    read_benchmark_classes,
    read_class_folders,
    read_masks,
    read_voc,
)
from freezealign.images import read_image
from freezealign.inputs import InputError

CLASSES = ["tench", "gold fish"]
TEMPLATES = ["a photo of a {c}.", "{c}"]


def draw(red: int, size: tuple[int, int] = (5, 4)) -> Image.Image:
    """A picture that is known again by its red channel."""
    return Image.new("RGB", size, (red, 0, 0))


def encoded(image: Image.Image, form: str = "png") -> bytes:
    content = io.BytesIO()
    image.save(content, form)
    return content.getvalue()


def reds(images) -> list[int]:
    return [read_image(image).getpixel((0, 0))[0] for image in images]


# clip-benchmark's webdataset layout


def write_shards(root: Path, samples: list[dict], split: str = "test", size: int = 2) -> Path:
    """Write what clip-benchmark's exporter writes, by the same writer."""
    folder = root / split
    folder.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()):
        sink = webdataset.ShardWriter(str(folder / "%d.tar"), maxcount=size)
        for number, sample in enumerate(samples):
            sink.write({"__key__": f"s{number:07d}", **sample})
        shards = sink.shard
        sink.close()
    (folder / "nshards.txt").write_text(f"{shards}\n")
    return root


def write_classes(root: Path, labels=(1, 0, 1), **files: str) -> Path:
    files = {"classnames": "tench\ngold fish\n", "zeroshot_classification_templates": "\n".join(TEMPLATES)} | files
    write_shards(root, [{"png": encoded(draw(number)), "cls": label} for number, label in enumerate(labels)])
    for name, content in files.items():
        (root / f"{name}.txt").write_text(content)
    return root


def write_captions(root: Path, texts=("one\nuno", "two", ""), images=None) -> Path:
    images = images or [encoded(draw(number)) for number in range(len(texts))]
    write_shards(root, [{"png": image, "txt": text} for image, text in zip(images, texts)])
    (root / "dataset_type.txt").write_text("retrieval\n")
    return root


def test_a_benchmark_of_classes_is_read_with_names_and_templates(tmp_path):
    found = read_benchmark_classes(write_classes(tmp_path))
    assert (found.labels, found.class_names, found.templates) == ([1, 0, 1], CLASSES, TEMPLATES)
    assert reds(found.images) == [0, 1, 2]


def test_images_stay_in_the_shards_and_travel_to_other_processes(tmp_path):
    images = pickle.loads(pickle.dumps(read_benchmark_classes(write_classes(tmp_path)).images))
    assert images[2]() == encoded(draw(2)) and images[2].path == tmp_path / "test/1.tar"


@pytest.mark.parametrize("form", ["webp", "png", "jpg"])
def test_every_image_format_of_the_exporter_is_read(form, tmp_path):
    image = encoded(draw(200), {"jpg": "jpeg"}.get(form, form))
    write_shards(tmp_path, [{form: image, "cls": 0}])
    (tmp_path / "classnames.txt").write_text("a")
    (red,) = reds(read_benchmark_classes(tmp_path).images)
    assert abs(red - 200) < 4


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path):
    write_shards(tmp_path, [{"png": encoded(draw(number)), "cls": 0} for number in range(12)], size=1)
    (tmp_path / "classnames.txt").write_text("a")
    assert reds(read_benchmark_classes(tmp_path).images) == list(range(12))


def test_captions_are_the_lines_that_are_not_blank(tmp_path):
    found = read_benchmark_captions(write_captions(tmp_path, ["one\nuno", "two\n \n", ""]))
    assert found.captions == {"": [["one", "uno"], ["two"], []]} and reds(found.images) == [0, 1, 2]


def test_languages_share_the_images_of_the_first(tmp_path):
    roots = {"en": write_captions(tmp_path / "en"), "de": write_captions(tmp_path / "de", ("eins", "zwei", "drei"))}
    found = read_benchmark_captions(roots)
    assert found.captions == {"en": [["one", "uno"], ["two"], []], "de": [["eins"], ["zwei"], ["drei"]]}
    assert [image.path.is_relative_to(tmp_path / "en") for image in found.images] == [True] * 3


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 2, 1], "image 1 is 's0000001' of {1} bytes in 'en', but 's0000001' of {2} bytes in 'de'"),
        ([0, 1], "image 2 is 's0000002' of {2} bytes in 'en', but missing in 'de'"),
        ([0, 1, 2, 0], "image 3 is missing in 'en', but 's0000003' of {0} bytes in 'de'"),
    ],
)
def test_languages_with_other_images_name_the_first_difference(order, message, tmp_path):
    images = [encoded(draw(number, (5 + 9 * number, 4)), "bmp") for number in range(3)]
    roots = {"en": write_captions(tmp_path / "en", "abc", images)}
    roots["de"] = write_captions(tmp_path / "de", "abcd"[: len(order)], [images[number] for number in order])
    with pytest.raises(ValueError, match="export every language from the same images") as error:
        read_benchmark_captions(roots)
    assert message.format(*map(len, images)) in str(error.value)


@pytest.mark.parametrize("size", [0, 700, 1030, 1500, 2000, 2600])
def test_a_damaged_shard_is_not_read_in_part(size, tmp_path):
    shard = write_classes(tmp_path) / "test/0.tar"
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"cannot read all of .*0\.tar: .* Fetch it anew"):
        read_benchmark_classes(tmp_path)


@pytest.mark.slow
def test_what_clip_benchmark_writes_is_read_as_it_reads_it(tmp_path):
    from clip_benchmark.datasets.builder import build_wds_dataset
    from clip_benchmark.webdataset_builder import convert_dataset, convert_retrieval_dataset

    class Classified(list):
        classes, templates = CLASSES, TEMPLATES

    pixels = [encoded(draw(number)) for number in range(5)]
    captions = [["one", "uno "], ["zwei\nund drei"], ["läng\u2028er"], [" "], ["ein", "", "日本"]]
    options = {"image_format": "png", "max_count": 2, "verbose": False}
    convert_dataset(Classified(zip(pixels, [1, 0, 1, 1, 0])), "test", str(tmp_path / "cls"), **options)
    convert_retrieval_dataset(list(zip(pixels, captions)), "test", str(tmp_path / "txt"), **options)

    def oracle(kind: str):
        return build_wds_dataset(kind, np.asarray, data_dir=str(tmp_path / kind))

    found, expected = read_benchmark_classes(tmp_path / "cls"), oracle("cls")
    assert (found.class_names, found.templates) == (expected.classes, expected.templates)
    assert [(image[0, 0, 0], label) for image, label in expected] == list(zip(reds(found.images), found.labels))

    captioned = read_benchmark_captions(tmp_path / "txt")
    assert captioned.captions[""] == [[text for text in texts if text.strip()] for _, texts in oracle("txt")]
    assert captioned.captions[""][1:3] == [["zwei\\nund drei"], ["läng", "er"]]


# Class names and templates of clip-benchmark


def test_names_and_templates_of_a_benchmark_are_those_of_the_package():
    names, templates = benchmark_class_names("imagenet1k"), benchmark_templates("imagenet1k")
    assert (len(names), names[0], names[999]) == (1000, "tench", "toilet paper")
    assert (len(templates), templates[0]) == (80, "a bad photo of a {c}.")


@pytest.mark.parametrize(
    ("language", "alias", "first", "templates"), [("ja", "jp", "テンチ", 37), ("zh", "cn", "丁鲷", 80)]
)
def test_iso_codes_stand_for_the_codes_of_the_files(language, alias, first, templates):
    names = benchmark_class_names("imagenet1k", language)
    assert names[0] == first and names == benchmark_class_names("imagenet1k", alias)
    assert len(benchmark_templates("imagenet1k", language)) == templates


@pytest.mark.parametrize(("language", "covered", "first"), [("de", 738, 0), ("om", 18, None), ("en", 1000, 0)])
def test_babel_imagenet_names_the_classes_that_a_language_covers(language, covered, first):
    names, english = benchmark_class_names("babel_imagenet", language), benchmark_class_names("babel_imagenet")
    indices = [index for index, name in enumerate(names) if name is not None]
    assert (len(names), len(indices)) == (1000, covered) and (first is None or indices[0] == first)
    assert len(benchmark_templates("babel_imagenet", language)) == 80 and english[1] == "goldfish"
    prompts = ClassPrompts({"en": english, "other": names}, benchmark_templates("babel_imagenet", language))
    assert prompts.named("other") == indices


def test_every_template_has_a_place_for_the_name():
    for language in ("de", "ja", "th", "yi"):
        assert all("{c}" in template for template in benchmark_templates("babel_imagenet", language))


@pytest.mark.parametrize("read", [benchmark_class_names, benchmark_templates])
@pytest.mark.parametrize("dataset", ["pets", "babel_imagenet"])
def test_without_the_package_the_command_that_installs_it_is_given(read, dataset, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'freezealign\[eval\]'"):
        read(dataset)


# Folders of classes


def write_folders(root: Path, names: dict[str, int]) -> Path:
    """Write a picture for each path; its number is its red channel."""
    for name, red in names.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(red).save(path)
    return root


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path):
    write_folders(
        tmp_path,
        {"tabby_cat/b.png": 1, "dog/x.png": 2, "tabby_cat/a.png": 3, "tabby_cat/c.png": 5, "tabby_cat/sub/c.png": 4},
    )
    (tmp_path / "tabby_cat/notes.txt").write_text("no picture")
    found = read_class_folders(tmp_path)
    assert found.class_names == ["dog", "tabby cat"] and found.labels == [0, 1, 1, 1, 1] and found.templates is None
    assert reds(found.images) == [2, 3, 1, 5, 4]


# Masks in Pascal VOC's folders

VALUES = np.array([[0, 1, 1, 255], [20, 0, 2, 255], [0, 0, 2, 2]], dtype=np.uint8)


def with_palette(values: np.ndarray) -> Image.Image:
    """A mask as VOC stores it: indices with a palette whose colours look nothing like them."""
    image = Image.fromarray(values, mode="P")
    image.putpalette([(37 * number) % 256 for number in range(3 * 256)])
    return image


def write_voc(root: Path, masks: dict[str, Image.Image], split: str = "val") -> Path:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for stem, mask in masks.items():
        draw(100, mask.size).save(root / f"JPEGImages/{stem}.jpg")
        mask.save(root / f"SegmentationClass/{stem}.png")
    (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{stem}\n" for stem in masks))
    return root


@pytest.mark.parametrize("make", [with_palette, Image.fromarray])
def test_masks_are_read_as_indices_not_as_colours(make, tmp_path):
    found = read_voc(write_voc(tmp_path, {"b": make(VALUES), "a": make(VALUES.T.copy())}))
    assert [image.name for image in found.images] == ["b.jpg", "a.jpg"]
    first, second = map(read_mask, found.masks)
    assert first.dtype == np.int64 and np.array_equal(first, VALUES) and np.array_equal(second, VALUES.T)


def test_the_twenty_classes_of_voc_are_named_in_order(tmp_path):
    names = read_voc(write_voc(tmp_path, {"a": with_palette(VALUES)})).class_names
    assert (len(names), names[0], names[14], names[19]) == (20, "aeroplane", "person", "tv monitor")


def test_other_data_sets_in_this_layout_bring_their_names(tmp_path):
    write_voc(tmp_path, {"a": with_palette(np.full((2, 3), 59, dtype=np.uint8))})
    names = [f"class {number}" for number in range(1, 60)]
    assert read_voc(tmp_path, class_names=names).class_names == names
    (tmp_path / "classnames.txt").write_text("\n".join(names))
    found = read_voc(tmp_path)
    assert found.class_names == names and read_mask(found.masks[0]).tolist() == [[59] * 3] * 2
    assert read_voc(tmp_path, class_names=["a"]).class_names == ["a"]


# Masks in a table


def table(masks: list, feature=None) -> datasets.Dataset:
    images = [{"bytes": encoded(draw(number, (4, 3))), "path": None} for number in range(len(masks))]
    features = datasets.Features({"image": datasets.Image(), "mask": feature or datasets.Image()})
    return datasets.Dataset.from_dict({"image": images, "mask": masks}, features)


def stored(mask: Image.Image) -> dict:
    return {"bytes": encoded(mask), "path": None}


def test_masks_of_a_table_are_those_of_its_rows():
    data = table([stored(with_palette(VALUES)), stored(Image.fromarray(VALUES[::-1].copy()))])
    found = read_masks(data, [f"class {number}" for number in range(20)])
    assert reds(found.images) == [0, 1] and len(found.class_names) == 20
    assert [read_mask(mask).tolist() for mask in found.masks] == [VALUES.tolist(), VALUES[::-1].tolist()]


def test_masks_may_be_arrays_and_columns_have_any_name():
    data = table([VALUES.tolist()], datasets.Array2D((3, 4), "uint8")).rename_columns({"image": "a", "mask": "b"})
    (mask,) = read_masks(data, ["x"] * 20, image="a", mask="b").masks
    assert read_mask(mask).dtype == np.int64 and read_mask(mask).tolist() == VALUES.tolist()


def test_nothing_is_decoded_before_it_is_called_for(monkeypatch):
    decoded = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda self, *rest, **more: decoded.append(1) or decode(self, *rest, **more)
    )
    found = read_masks(table([stored(with_palette(VALUES))] * 3), ["x"] * 20)
    assert decoded == []
    found.images[1]()
    assert decoded == [1]  # the image without its mask


# What is refused, and how each layout may be varied

TYPE, NAMES, PROMPTS = "dataset_type.txt", "classnames.txt", "zeroshot_classification_templates.txt"
COUNT, SHARD, LIST = "test/nshards.txt", "test/1.tar", "ImageSets/Segmentation/val.txt"
LAYOUTS = {
    "nothing": lambda root: None,
    "classes": write_classes,
    "captions": write_captions,
    "empty": lambda root: write_classes(root, labels=()),
    "beyond": lambda root: write_classes(root, labels=(0, 2)),
    "folders": lambda root: write_folders(root, {"n01/a.png": 1, "n02/b.png": 2}),
    "voc": lambda root: write_voc(root, {stem: with_palette(VALUES) for stem in "abc"}),
}
CLS, TXT = read_benchmark_classes, read_benchmark_captions


def lay_out(root: Path, layout: str, changes: dict[str, bytes | str | None]) -> Path:
    """Write good data, then change files of it: ``None`` removes one."""
    LAYOUTS[layout](root)
    for name, content in changes.items():
        if content is None:
            (root / name).unlink()
        elif content == "":
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def pick(read, **options):
    return lambda root: read(root, **options)


@pytest.mark.parametrize(
    ("layout", "changes", "read", "attribute", "expected"),
    [
        ("classes", {PROMPTS: None}, CLS, "templates", None),
        ("classes", {NAMES: "\ufeffa \nb\n"}, CLS, "class_names", ["a", "b"]),
        ("classes", {TYPE: "Classification"}, CLS, "labels", [1, 0, 1]),
        ("folders", {NAMES: "tench\ngoldfish\n"}, read_class_folders, "class_names", ["tench", "goldfish"]),
        ("voc", {LIST: "b\n\na\n"}, read_voc, "images", ["b", "a"]),
        ("voc", {LIST.replace("val", "train"): "c"}, pick(read_voc, split="train"), "images", ["c"]),
    ],
)
def test_files_of_a_layout_say_how_it_is_read(layout, changes, read, attribute, expected, tmp_path):
    found = getattr(read(lay_out(tmp_path, layout, changes)), attribute)
    assert ([image.stem for image in found] if attribute == "images" else found) == expected


@pytest.mark.parametrize(
    ("layout", "changes", "read", "error", "message"),
    [
        ("classes", {TYPE: "retrieval"}, CLS, ValueError, "for retrieval.*read it with read_benchmark_captions"),
        ("classes", {TYPE: "multilabel"}, CLS, ValueError, "data set for multilabel.*only .* can be read"),
        ("classes", {}, TXT, ValueError, "for classification.*read it with read_benchmark_classes"),
        ("classes", {}, pick(CLS, split="val"), FileNotFoundError, r"val.nshards\.txt is missing.*\['test'\]"),
        ("classes", {COUNT: "two"}, CLS, ValueError, r"nshards\.txt holds \['two'\], not one number"),
        ("classes", {COUNT: "1\n2"}, CLS, ValueError, r"nshards\.txt holds \['1', '2'\], not one number"),
        ("classes", {COUNT: "1"}, CLS, ValueError, r"'1\.tar', but nshards\.txt says 1 shards"),
        ("classes", {SHARD: None}, CLS, FileNotFoundError, r"1 of 2 shards are missing, the first is '1\.tar'"),
        (
            "classes",
            {NAMES: None},
            CLS,
            FileNotFoundError,
            r"classnames\.txt is missing; write the name of a",
        ),
        ("classes", {NAMES: b"\xff"}, CLS, ValueError, r"classnames\.txt is not UTF-8.*save it as UTF-8"),
        ("beyond", {}, CLS, ValueError, "label 2 of image 1 has no name among the 2 class names"),
        ("empty", {}, CLS, ValueError, r"the split 'test' of .* is empty: there is no sample in its 1 shards"),
        ("nothing", {}, lambda root: TXT({}), ValueError, "there is no language; give at least one"),
        (
            "captions",
            {},
            lambda root: TXT({False: root}),
            ValueError,
            "a language is a text, got False.*'no'",
        ),
        ("folders", {NAMES: "tench"}, read_class_folders, ValueError, "has 1 lines, but there are 2 folders"),
        ("folders", {"dog": ""}, read_class_folders, FileNotFoundError, r"no image in '.*dog'; remove the folder"),
        ("nothing", {}, read_class_folders, FileNotFoundError, "no sub-folder in"),
        ("nothing", {}, lambda root: read_class_folders(root / "gone"), FileNotFoundError, "no sub-folder in"),
        ("voc", {}, pick(read_voc, split="test"), FileNotFoundError, r"test\.txt is missing.*\['val'\]"),
        ("voc", {LIST: "\n"}, read_voc, ValueError, r"val\.txt is empty"),
        *(
            (layout, {NAMES: content}, read, ValueError, rf"classnames\.txt {what}; write the name of a class a line")
            for layout, read in (("classes", CLS), ("folders", read_class_folders), ("voc", read_voc))
            for content, what in ((b"", "is empty"), ("a\n\nb", "has nothing in line 2"))
        ),
        ("classes", {COUNT: "1" * 5000}, CLS, ValueError, r"nshards\.txt holds \['1+.*, not one number"),
    ],
)
def test_data_that_is_not_complete_is_refused(layout, changes, read, error, message, tmp_path):
    with pytest.raises(error, match=message):
        read(lay_out(tmp_path, layout, changes))


@pytest.mark.parametrize("name", [NAMES, COUNT, TYPE, "zeroshot_classification_templates.txt"])
def test_a_list_that_is_a_link_to_a_device_or_to_nothing_is_refused(name, tmp_path):
    for number, (target, what) in enumerate({"/dev/zero": "is a device and no file", "nowhere": "is missing"}.items()):
        root = lay_out(tmp_path / str(number), "classes", {name: "x"})
        (root / name).unlink()
        (root / name).symlink_to(target)
        with pytest.raises(OSError, match=f"{name.rpartition('/')[2]} {what}"):
            read_benchmark_classes(root)


@pytest.mark.parametrize(
    ("masks", "columns", "message"),
    [
        ([None], {"image": "gone"}, r"no column 'gone'; the columns are \['image', 'mask'\].*image='…'"),
        ([None], {"mask": "gone"}, r"no column 'gone'; the columns are \['image', 'mask'\].*mask='…'"),
        ([], {}, "no images"),
    ],
)
def test_a_table_of_other_columns_is_refused(masks, columns, message):
    with pytest.raises(ValueError, match=message):
        read_masks(table(masks), ["x"], **columns)


@pytest.mark.parametrize(
    ("read", "dataset", "language", "message"),
    [
        (
            benchmark_class_names,
            "food101",
            "en",
            r"no class names in 'en' for 'food101', only for .*'pets'.* give",
        ),
        (benchmark_class_names, "imagenet1k", "de", r"no list in 'de'.*\['ar', 'en', 'it', 'ja', 'zh'\].*'babel_im"),
        (benchmark_templates, "imagenet1k", "de", r"no list in 'de'.*\['ar', 'en', 'it', 'ja', 'zh'\].*'babel_im"),
        (benchmark_templates, "imagenet1k", "../en", r"no list in '\.\./en', only in \['ar', 'en'"),
        (benchmark_class_names, "babel_imagenet", "tlh", r"no class names of 'babel_imagenet' for 'tlh', .*'de'"),
        (benchmark_templates, "babel_imagenet", "la", "no prompts of 'babel_imagenet' for 'la'"),  # which has names
    ],
)
def test_prompts_that_are_not_published_name_those_that_are(read, dataset, language, message):
    with pytest.raises(ValueError, match=message):
        read(dataset, language)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("en_classnames.json", '{"pets": 3}', "'pets' is no list; install"),
        ("en_classnames.json", "[" * 100_000, "not valid JSON"),
        ("en_classnames.json", '["pets"]', "holds no object"),
        ("babel_imagenet.json", '{"EN": [[5], 3]}', "is damaged at 'en'"),
        ("babel_imagenet.json", '{"EN": [[5000], ["a"]]}', "is damaged at 'en'"),
        ("babel_imagenet.json", '{"EN": [[1, 2], ["a"]]}', "is damaged at 'en'"),
    ],
)
def test_files_of_the_package_that_are_damaged_are_named(file, content, message, tmp_path, monkeypatch):
    monkeypatch.setattr("freezealign.evaluation.testsets.clip_benchmark._folder", lambda: tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=rf"{file}.*{message}"):
        benchmark_class_names("babel_imagenet" if "babel" in file else "pets")


# What cannot be read is left out, and listed


def entry(red: int, **text) -> dict:
    return {"png": encoded(draw(red)), **text}


def shards(*entries: dict, kind: str = "classification"):
    """Return what writes samples as they are into a folder, and reads them."""

    def read(root: Path):
        write_shards(root, list(entries))
        lay_out(root, "nothing", {NAMES: "a\nb", TYPE: kind})
        return CLS(root) if kind == "classification" else TXT(root)

    return read


def languages(root: Path) -> CaptionedImages:
    for code, texts in {"en": [b"one", b"two", b"\xff"], "de": [b"\xff", b"zwei", b"drei"]}.items():
        write_captions(root / code, texts)
    return TXT({code: root / code for code in ("en", "de")})


def voc_without(name: str):
    return lambda root: read_voc(lay_out(root, "voc", {name: None}))


def broken_folders(root: Path) -> ClassifiedImages:
    write_folders(root, {"a/0.png": 0, "a/1.png": 1, "b/2.png": 2})
    return read_class_folders(lay_out(root, "nothing", {"a/1.png": "no picture"}))


def mask_table(root: Path) -> MaskedImages:
    large = Image.fromarray(np.zeros((9, 9), np.uint8))
    return read_masks(table([stored(with_palette(VALUES)), None, stored(large), stored(with_palette(VALUES))]), ["x"])


BAD, LATIN = {"png": b"no picture"}, b"\xff"
LEFT_OUT = [
    # how the data is made and read, the pictures that stay, and what is wrong with the others
    (shards(entry(0, cls=0), entry(1, cls="cat")), [0], {1: "the .cls of 's0000001' is 'cat', not the index"}),
    (shards(entry(0), entry(1, cls=1)), [1], {0: "needs an image and a .cls, but has only ['png']"}),
    (shards({"cls": 1}, entry(1, cls=1)), [1], {0: "needs an image and a .cls, but has only ['cls']"}),
    (shards(entry(0, cls=0), entry(1, cls=LATIN)), [0], {1: "the .cls of 's0000001' is not UTF-8"}),
    (shards(entry(0, cls=0), {**BAD, "cls": 1}), [0], {1: "not an image"}),
    (shards(entry(0, cls="x"), {**BAD, "cls": 1}, entry(2, cls=0)), [2], {0: "is 'x'", 1: "not an image"}),
    (
        shards(entry(0, txt=b"a"), entry(1, txt=LATIN), kind="retrieval"),
        [0],
        {1: "0.tar: the .txt of 's0000001': the text is not UTF-8"},
    ),
    (shards({"txt": b"a"}, entry(1, txt=b"b"), kind="retrieval"), [1], {0: "has only ['txt']"}),
    (languages, [1], {number: f"the .txt of 's000000{number}': the text is not UTF-8" for number in (0, 2)}),
    (broken_folders, [0, 2], {1: "not an image"}),
    (voc_without("SegmentationClass/b.png"), [100, 100], {1: "SegmentationClass/b.png' is missing; add it"}),
    (voc_without("JPEGImages/a.jpg"), [100, 100], {0: "JPEGImages/a.jpg' is missing; add it"}),
    (mask_table, [0, 3], {1: "row 1 has no 'mask'", 2: "the mask is (9, 9), its image (3, 4)"}),
]


@pytest.mark.parametrize(("make", "kept", "reasons"), LEFT_OUT)
def test_what_cannot_be_read_is_left_out_with_its_position_and_reason(make, kept, reasons, tmp_path):
    found = make(tmp_path)
    checked = found.readable()
    assert reds(checked.images) == pytest.approx(kept, abs=1)  # JPEG rounds
    assert [entry.index for entry in checked.skipped] == list(reasons)
    for left_out in checked.skipped:
        assert reasons[left_out.index] in left_out.reason
    known = getattr(checked, checked.known)
    assert {len(some) for some in (known.values() if isinstance(known, dict) else [known])} == {len(kept)}
    assert len(found.images) + len(found.skipped) == len(checked.images) + len(checked.skipped)
    assert checked.readable() == checked
    with pytest.raises(InputError, match=rf"item {next(iter(reasons))} of {len(kept) + len(reasons)}: "):
        found.readable(strict=True)


def test_a_bad_caption_among_good_ones_costs_itself(tmp_path):
    found = shards(entry(0, txt=b"a\n\xff\n\nb"), entry(1, txt=b"c"), {**BAD, "txt": b"d\n\xff"}, kind="retrieval")(
        tmp_path
    )
    assert found.captions == {"": [["a", "b"], ["c"], ["d"]]}
    places = [(entry.index, entry.item) for entry in found.skipped]
    assert places == [(0, "text 1"), (2, "text 1")] and "not UTF-8" in found.skipped[0].reason
    checked = found.readable()
    assert [(entry.index, entry.item) for entry in checked.skipped] == [(0, "text 1"), (2, "")]
    assert checked.captions == {"": [["a", "b"], ["c"]]} and checked.readable() == checked
    with pytest.raises(InputError, match="item 0 of 3, text 1: the text is not UTF-8"):
        found.readable(strict=True)


def test_labels_and_captions_stay_with_their_images(tmp_path):
    found = shards(entry(0), entry(1, cls=1), entry(2, cls="x"), entry(3, cls=0))(tmp_path / "a")
    assert (found.labels, reds(found.images)) == ([1, 0], [1, 3])
    assert languages(tmp_path / "b").captions == {"en": [["two"]], "de": [["zwei"]]}
    broken = ClassifiedImages([b"", encoded(draw(5)), b""], [0, 1, 0], ["a", "b"]).readable()
    assert (broken.labels, reds(broken.images)) == ([1], [5])


def test_data_of_which_nothing_can_be_read_says_why(tmp_path):
    with pytest.raises(InputError, match=r"item 0 of 2: .* is 'x', not the index of a class"):
        shards(entry(0, cls="x"), entry(1, cls="y"))(tmp_path)
    with pytest.raises(InputError, match="item 0 of 1: not an image"):
        CaptionedImages([b""], {"": [["a"]]}).readable()


# Containers


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifiedImages([], [], []), "the test set has no images"),
        (lambda: ClassifiedImages([b""] * 2, [0] * 3, ["a"]), "2 images but labels of 3; each"),
        (lambda: CaptionedImages([b""] * 2, {"de": [["a"]] * 3}), "2 images but captions of 3 in de"),
        (lambda: MaskedImages([b""] * 2, [VALUES] * 3, ["a"]), "2 images but masks of 3"),
        (
            lambda: ClassifiedImages([b""] * 2, [0, "cat"], ["a"]),
            "label 'cat' of image 1 is no whole number; give",
        ),
        (lambda: ClassifiedImages([b""], [None], ["a"]), "label None of image 0 is no whole number"),
        (lambda: ClassifiedImages([b""], [0.5], ["a"]), r"label 0\.5 of image 0 is no whole number"),
    ],
)
def test_what_does_not_fit_its_images_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_whole_numbers_of_any_type_are_labels():
    assert ClassifiedImages([b""] * 2, [np.int64(1), True], ["a", "b"]).labels == [1, True]


@given(st.lists(st.integers(-3, 6), min_size=1), st.integers(1, 4))
@settings(max_examples=50)
def test_every_label_has_a_class_name(labels, classes):
    def make():
        return ClassifiedImages([b""] * len(labels), labels, ["x"] * classes)

    wrong = [label for label in labels if not 0 <= label < classes]
    if not wrong:
        assert make().labels == labels
        return
    with pytest.raises(ValueError, match=f"label {wrong[0]} of image {labels.index(wrong[0])} has no name"):
        make()
