"""Pictures: damaged files of every format, and odd objects in place of a picture."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from judge import driver, judge, require
from PIL import Image, features
from spoil import ODD, damaged_bytes
from valid import picture

from freezealign.images import ASPECT_LIMIT, PIXEL_LIMIT, read_image
from freezealign.modality import read_item

EXIF = Image.Exif()
EXIF[0x0112] = 6  # to be turned
PICTURES = {
    "PNG": picture(9),
    "PNG 16 bit": picture(9, mode="I;16"),
    "PNG palette": picture(9, mode="P", transparency=0),
    "PNG alpha": picture(9, mode="RGBA"),
    "JPEG": picture(9, "JPEG"),
    "JPEG turned": picture(9, "JPEG", exif=EXIF),
    "JPEG CMYK": picture(9, "JPEG", mode="CMYK"),
    "BMP": picture(9, "BMP"),
    "GIF": picture(9, "GIF", save_all=True, append_images=[Image.new("RGB", (6, 5))]),
    "TIFF": picture(9, "TIFF"),
    "TIFF float": picture(9, "TIFF", mode="F"),
    "TIFF LZW": picture(9, "TIFF", compression="tiff_lzw"),
    "PPM": picture(9, "PPM"),
    "ICO": picture(9, "ICO", size=(16, 16)),
    **{kind: picture(9, kind) for kind in ("WEBP", "AVIF") if features.check(kind.lower())},
    **({"JPEG2000": picture(9, "JPEG2000")} if features.check("jpg_2000") else {}),
}
CHECKED = ("PNG", "PNG 16 bit", "PNG palette", "PNG alpha")
"""Formats with a checksum over all that is shown: what is read is right."""
RIGHT = {name: np.asarray(read_image(content)) for name, content in PICTURES.items()}


def shown(image: Image.Image) -> np.ndarray:
    """Require that a picture is as every reader expects it."""
    width, height = image.size
    require(image.mode == "RGB", f"the mode is {image.mode}")
    require(0 < width * height <= PIXEL_LIMIT, f"it is {width} x {height}")
    require(max(width, height) <= ASPECT_LIMIT * min(width, height), f"it is {width} x {height}")
    return np.asarray(image)


@st.composite
def damaged_pictures(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(PICTURES)))
    content = draw(damaged_bytes(PICTURES[name]))
    if name.startswith("PNG") and draw(st.booleans()):
        content = with_checksums(content)
    return name, content


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks say that they are whole, so that damage gets through to what reads them."""
    import zlib

    at, parts = 8, [content[:8]]
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        body = content[at + 4 : at + 8 + size]
        parts += [content[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + size
    return b"".join([*parts, content[at:]])


@driver(30)
@given(damaged_pictures())
def test_a_damaged_picture(damaged):
    name, content = damaged
    sums_hold = content == with_checksums(content)

    def run(folder):
        path = folder / "picture.png"
        path.write_bytes(content)
        found = shown(read_image(path))
        require(np.array_equal(found, shown(read_image(io.BytesIO(content)))), "it is another picture in memory")
        if name in CHECKED and not sums_hold:
            require(np.array_equal(found, RIGHT[name]), "its checksums are wrong, and so is what was read")

    judge("images", damaged, run)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 9]), max_size=5) | st.sampled_from(
    [(2, 300, 3), (3, 4, 300), (300,)]
)
DTYPES = ["uint8", "float16", "float32", "float64", "int64", "bool", "uint16", "complex64", "O", "U3", "M8[s]"]


@st.composite
def odd_objects(draw: st.DrawFn) -> Any:
    """Return something in place of a picture."""
    kind = draw(st.sampled_from(["array", "array", "tensor", "dict", "odd", "path", "image", "called"]))
    shape = draw(SHAPES)
    if kind == "array":
        array = np.zeros(shape, draw(st.sampled_from(DTYPES)))
        if array.dtype.kind == "f":
            array += np.array(draw(st.sampled_from([0, 1, -1, 2, np.nan, np.inf, 1e-30])), array.dtype)
        return array
    if kind == "tensor":
        dtype = draw(
            st.sampled_from([torch.uint8, torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.int64])
        )
        tensor = torch.zeros(shape, dtype=dtype)
        return draw(st.sampled_from([tensor, tensor.to_sparse() if shape else tensor, tensor.to("meta")]))
    if kind == "dict":
        return {draw(st.sampled_from(["bytes", "path", "x"])): draw(st.sampled_from([*ODD, picture(9)]))}
    if kind == "image":
        modes = [
            "1",
            "L",
            "P",
            "PA",
            "LA",
            "La",
            "RGBA",
            "RGBa",
            "CMYK",
            "YCbCr",
            "LAB",
            "HSV",
            "I",
            "F",
            "I;16",
            "I;16B",
        ]
        return Image.new(
            draw(st.sampled_from(modes)), draw(st.sampled_from([(0, 1), (1, 1), (5, 6), (1, 60), (300, 5)]))
        )
    if kind == "path":
        return draw(
            st.sampled_from(["", ".", "/", "/dev/zero", "/dev/stdin", "\0", "a" * 5000, "http://", "http://[", "~"])
        )
    value = draw(st.sampled_from(ODD))
    return value if kind == "odd" else (lambda: value)


@driver(30)
@given(odd_objects())
def test_an_odd_object_for_a_picture(item):
    judge("image objects", item, lambda folder: shown(read_item(item, "image")))
