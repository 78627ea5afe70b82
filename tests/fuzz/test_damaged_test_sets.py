"""Test sets: a damaged one is refused, or every image has its label, captions or mask, each of them a possible one."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from judge import driver, judge, require, require_equal
from PIL import Image
from spoil import Link, damaged_folder, in_short, write_folder
from valid import picture, tar

from freezealign.evaluation.masks import read_mask
from freezealign.evaluation.testsets import (
    read_benchmark_captions,
    read_benchmark_classes,
    read_class_folders,
    read_voc,
)
from freezealign.images import read_image
from freezealign.inputs import InputError


def mask() -> bytes:
    """Return a mask of two classes and what does not count."""
    image, stream = Image.new("P", (6, 5)), io.BytesIO()
    image.putpalette([value for colour in range(256) for value in (colour, 0, 0)])
    image.putdata([0, 1, 2, 255, 1, 0] * 5)
    image.save(stream, "PNG")
    return stream.getvalue()


JPEG = picture(200, "JPEG")
SETS: dict[str, dict[str, bytes]] = {
    "classes": {
        "classnames.txt": b"apple\ncar\n",
        "zeroshot_classification_templates.txt": b"a photo of a {c}.\n{c}\n",
        "test/nshards.txt": b"2\n",
        **{f"test/{n}.tar": tar([(f"s{n}.png", picture(9)), (f"s{n}.cls", str(n).encode())]) for n in range(2)},
    },
    "captions": {
        "dataset_type.txt": b"retrieval\n",
        "test/nshards.txt": b"1\n",
        "test/0.tar": tar([("0.png", picture(1)), ("0.txt", b"one\ntwo"), ("1.png", picture(2)), ("1.txt", b"three")]),
    },
    "folders": {"classnames.txt": b"apple\ncar\n", "a/0.png": picture(1), "a/1.png": picture(2), "b/0.png": picture(3)},
    "masks": {
        "classnames.txt": b"apple\ncar\n",
        "ImageSets/Segmentation/val.txt": b"0\n1\n",
        **{f"JPEGImages/{n}.jpg": JPEG for n in range(2)},
        **{f"SegmentationClass/{n}.png": mask() for n in range(2)},
    },
}
READERS = {
    "classes": read_benchmark_classes,
    "captions": read_benchmark_captions,
    "folders": read_class_folders,
    "masks": read_voc,
}


@st.composite
def damaged_sets(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Return the kind of a test set, and what lies in it instead."""
    kind = draw(st.sampled_from(sorted(SETS)))
    return kind, draw(damaged_folder(SETS[kind]))


def is_read(read: Any, item: Any) -> Any:
    """Return what is read, or ``None`` where the item says why it cannot be."""
    try:
        return read(item)
    except InputError:
        return None


@driver(20)
@given(damaged_sets())
@example(("classes", {"test/nshards.txt": b"1" * 5000}))
@example(("classes", {"classnames.txt": Link("/dev/zero")}))
@example(("masks", {"classnames.txt": b""}))
@example(("masks", {"classnames.txt": b"apple\n\ncar\n"}))
def test_a_damaged_test_set(damaged):
    kind, damage = damaged

    def run(folder):
        found = READERS[kind](write_folder(folder, SETS[kind], damage))
        read = [is_read(read_image, image() if callable(image) else image) for image in found.images]
        if kind == "captions":
            (captions,) = found.captions.values()
            require_equal(len(captions), len(read), "as many lists of captions as images")
            require(all(text.strip() for own in captions for text in own), "a caption is empty")
        elif kind == "masks":
            require_equal(len(found.masks), len(read), "as many masks as images")
            require(found.class_names and all(found.class_names), f"a class has no name: {found.class_names}")
            for own in found.masks:
                values = is_read(read_mask, own)
                require(values is None or values.ndim == 2, "a mask is no mask")
        else:
            require_equal(len(found.labels), len(read), "as many labels as images")
            require(all(0 <= label < len(found.class_names) for label in found.labels), "a label has no class")
            require(all(name.strip() for name in found.class_names), f"a class has no name: {found.class_names}")

    judge("test sets", (kind, in_short(SETS[kind], damage)), run, "class names")
