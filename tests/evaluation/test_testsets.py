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


def test_a_benchmark_without_templates_has_none(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "zeroshot_classification_templates.txt").unlink()
    assert read_benchmark_classes(tmp_path).templates is None


def test_another_split_is_read_by_its_name(tmp_path):
    write_shards(write_classes(tmp_path), [{"png": encoded(draw(9)), "cls": 0}], split="train")
    assert reds(read_benchmark_classes(tmp_path, split="train").images) == [9]


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


def test_no_language_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        read_benchmark_captions({})


@pytest.mark.parametrize(
    ("read", "kind", "remedy"),
    [
        (read_benchmark_classes, "retrieval", "read it with read_benchmark_captions"),
        (read_benchmark_classes, "multilabel", "only .* can be read"),
        (read_benchmark_captions, "classification", "read it with read_benchmark_classes"),
    ],
)
def test_a_data_set_of_another_type_names_its_reader(read, kind, remedy, tmp_path):
    with pytest.raises(ValueError, match=f"data set for {kind}.*{remedy}"):
        read(write_classes(tmp_path, dataset_type=f"{kind}\n"))


def test_a_split_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"val.nshards\.txt is missing.*\['test'\]"):
        read_benchmark_classes(write_classes(tmp_path), split="val")


def test_a_number_of_shards_that_is_none_is_refused(tmp_path):
    (write_classes(tmp_path) / "test/nshards.txt").write_text("two\n")
    with pytest.raises(ValueError, match=r"nshards\.txt holds \['two'\], not one number"):
        read_benchmark_classes(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    (write_classes(tmp_path) / "test/1.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 shards are missing, the first is '1\.tar'"):
        read_benchmark_classes(tmp_path)


def test_a_shard_too_many_is_named(tmp_path):
    (write_classes(tmp_path) / "test/nshards.txt").write_text("1\n")
    with pytest.raises(ValueError, match=r"'1\.tar', but nshards\.txt says 1 shards"):
        read_benchmark_classes(tmp_path)


@pytest.mark.parametrize("size", [0, 700, 1030, 1500, 2000, 2600])
def test_a_damaged_shard_is_not_read_in_part(size, tmp_path):
    shard = write_classes(tmp_path) / "test/0.tar"
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"cannot read all of .*0\.tar: .* Fetch it anew"):
        read_benchmark_classes(tmp_path)


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the split 'test' of .* is empty: there is no sample in its 1 shards"):
        read_benchmark_classes(write_classes(tmp_path, labels=()))


def test_class_names_that_are_missing_are_asked_for(tmp_path):
    (write_classes(tmp_path) / "classnames.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"classnames\.txt is missing; write the name of a class a line"):
        read_benchmark_classes(tmp_path)


def test_a_label_without_a_class_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="label 2 of image 1 has no name among the 2 class names"):
        read_benchmark_classes(write_classes(tmp_path, labels=(0, 2)))


def test_a_label_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"1\.tar: the \.cls of 's0000002' is 'cat', not the index"):
        read_benchmark_classes(write_classes(tmp_path, labels=(0, 1, "cat")))


@pytest.mark.parametrize("sample", [{"cls": 0}, {"png": b"", "txt": "a"}])
def test_a_sample_without_image_or_label_is_refused(sample, tmp_path):
    with pytest.raises(ValueError, match=rf"0\.tar: 's0000000' needs .* but has only \['{next(iter(sample))}"):
        read_benchmark_classes(write_shards(tmp_path, [sample]))


def test_captions_that_are_not_utf8_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the \.txt of 's0000000' is not UTF-8"):
        read_benchmark_captions(write_captions(tmp_path, [b"\xff"]))


def test_class_names_that_are_not_utf8_are_refused(tmp_path):
    (write_classes(tmp_path) / "classnames.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"classnames\.txt is not UTF-8"):
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


def test_a_data_set_with_templates_only_says_that_it_has_no_names():
    assert benchmark_templates("food101") == ["a photo of {c}, a type of food."]
    with pytest.raises(ValueError, match=r"no class names in 'en' for 'food101', only for .*'pets'.* give your own"):
        benchmark_class_names("food101")


@pytest.mark.parametrize("read", [benchmark_class_names, benchmark_templates])
@pytest.mark.parametrize("language", ["de", "../en"])
def test_a_language_without_a_list_names_those_that_have_one(read, language):
    with pytest.raises(ValueError, match=r"no list in .*\['ar', 'en', 'it', 'ja', 'zh'\].*'babel_imagenet'"):
        read("imagenet1k", language)


def test_a_language_that_babel_imagenet_lacks_is_refused():
    with pytest.raises(ValueError, match=r"no class names of 'babel_imagenet' for 'tlh', only for .*'de'"):
        benchmark_class_names("babel_imagenet", "tlh")
    with pytest.raises(ValueError, match="no prompts of 'babel_imagenet' for 'la'"):
        benchmark_templates("babel_imagenet", "la")  # class names without prompts


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


def test_a_list_of_names_takes_the_place_of_folder_names(tmp_path):
    write_folders(tmp_path, {"n01/a.png": 1, "n02/a.png": 2})
    (tmp_path / "classnames.txt").write_text("tench\ngoldfish\n")
    assert read_class_folders(tmp_path).class_names == ["tench", "goldfish"]


def test_a_list_with_too_few_names_is_refused(tmp_path):
    write_folders(tmp_path, {"n01/a.png": 1, "n02/a.png": 2})
    (tmp_path / "classnames.txt").write_text("tench\n")
    with pytest.raises(ValueError, match=r"classnames\.txt has 1 lines, but there are 2 folders"):
        read_class_folders(tmp_path)


def test_a_folder_without_images_is_named(tmp_path):
    (write_folders(tmp_path, {"cat/a.png": 1}) / "dog").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image in '.*dog'; remove the folder"):
        read_class_folders(tmp_path)


@pytest.mark.parametrize("name", ["", "gone"])
def test_a_folder_without_sub_folders_is_refused(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="no sub-folder in"):
        read_class_folders(tmp_path / name)


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


def test_another_split_has_a_list_of_its_own(tmp_path):
    write_voc(write_voc(tmp_path, {"a": with_palette(VALUES)}), {"b": with_palette(VALUES)}, split="train")
    assert [image.name for image in read_voc(tmp_path, split="train").images] == ["b.jpg"]


def test_other_data_sets_in_this_layout_bring_their_names(tmp_path):
    write_voc(tmp_path, {"a": with_palette(np.full((2, 3), 59, dtype=np.uint8))})
    names = [f"class {number}" for number in range(1, 60)]
    assert read_voc(tmp_path, class_names=names).class_names == names
    (tmp_path / "classnames.txt").write_text("\n".join(names))
    found = read_voc(tmp_path)
    assert found.class_names == names and read_mask(found.masks[0]).tolist() == [[59] * 3] * 2
    assert read_voc(tmp_path, class_names=["a"]).class_names == ["a"]


@pytest.mark.parametrize("name", ["SegmentationClass/b.png", "JPEGImages/b.jpg"])
def test_an_image_without_a_mask_is_named(name, tmp_path):
    write_voc(tmp_path, {stem: with_palette(VALUES) for stem in "abc"})
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 images or masks of the split 'val' are missing, .*{name}'"):
        read_voc(tmp_path)


def test_a_list_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"test\.txt is missing.*\['val'\]"):
        read_voc(write_voc(tmp_path, {"a": with_palette(VALUES)}), split="test")


def test_an_empty_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"val\.txt is empty"):
        read_voc(write_voc(tmp_path, {}))


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


def test_a_row_without_a_mask_is_named():
    found = read_masks(table([stored(with_palette(VALUES)), None]), ["x"] * 20)
    with pytest.raises(InputError, match=r"row 1 has no 'mask'; leave it out\.$"):
        read_mask(found.masks[1])


@pytest.mark.parametrize("keyword", ["image", "mask"])
def test_a_missing_column_is_named_with_the_keyword_that_chooses_another(keyword):
    with pytest.raises(ValueError, match=rf"no column 'gone'; the columns are \['image', 'mask'\].*{keyword}='…'"):
        read_masks(table([None]), ["x"], **{keyword: "gone"})


def test_a_table_without_rows_is_refused():
    with pytest.raises(ValueError, match="no images"):
        read_masks(table([]), ["x"])


# Containers


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda some: ClassifiedImages([b""] * 2, [0] * len(some), ["a"]), "labels"),
        (lambda some: CaptionedImages([b""] * 2, {"de": [["a"]] * len(some)}), "lists of captions in de"),
        (lambda some: MaskedImages([b""] * 2, some, ["a"]), "masks"),
    ],
)
def test_counts_that_differ_are_refused(make, what):
    with pytest.raises(ValueError, match=f"2 images but 3 {what}"):
        make([lambda: VALUES] * 3)
    assert len(make([lambda: VALUES] * 2).images) == 2


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
