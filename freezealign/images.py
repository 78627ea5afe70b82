"""Pictures: every form in which one is passed, read as upright RGB."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from freezealign.files import open_file
from freezealign.inputs import DownloadError, InputError, download, is_url, shorten

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"}
)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
"""What is opened, whatever its suffix says. Others of Pillow's formats start other programs: EPS starts Ghostscript."""
ENCODED = (bytes, bytearray, memoryview, io.BytesIO)
"""In which a file may be passed whole."""
PIXEL_LIMIT = 100_000_000
ASPECT_LIMIT = 50
"""Times the shorter side that the longer may be: encoders resize by the shorter one, and slivers grow to gigabytes."""
SMALLEST_CROP = 0.5
"""Share of the area that a random crop keeps at least."""


def read_image(item: Any) -> Image.Image:
    """Read one image as RGB, upright, with transparency laid on white.

    Args:
        item: PIL image in any mode; path; http(s) address; encoded bytes; a dict with ``bytes`` or ``path`` (as
            ``datasets`` stores undecoded images); NumPy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); tensor
            (1, H, W), (3, H, W) or (4, H, W). Arrays and tensors are uint8, or floating point in [0, 1]. Or a function
            without arguments that returns any of these, called when the image is due. Of PIL's modes, ``F`` holds
            values in [0, 1], and those that begin with ``I`` 0 to 65,535, whatever the largest of them is.

    Raises:
        InputError: Whatever reading it raises; the message names the image and says why.
    """
    try:
        item = item() if callable(item) else item
        if isinstance(item, dict) and (item.get("bytes") or item.get("path")):
            item = item.get("bytes") or item["path"]
        item = item.getvalue() if isinstance(item, io.BytesIO) else item
        return _read(item, _name(item))
    except (InputError, DownloadError):
        raise
    except UnidentifiedImageError:
        raise InputError(f"not an image: {_name(item)}.") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise whatever they happen to trip over
        raise InputError(f"cannot read {_name(item)}: {type(error).__name__}: {error}.") from None


def _read(item: Any, name: str) -> Image.Image:
    if isinstance(item, Image.Image):
        return _to_rgb(item, name)
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return _from_array(item, name)
    item = download(item) if is_url(item) else item
    if not isinstance(item, (str, Path, *ENCODED)):
        raise InputError(f"expected an image, got {shorten(item)} ({type(item).__name__}).")
    file: BinaryIO
    try:
        file = open_file(item) if isinstance(item, (str, Path)) else io.BytesIO(cast(bytes, item))
    except FileNotFoundError:
        raise InputError(f"no such image file: {shorten(str(item), 300)}.") from None
    with file, Image.open(file, formats=formats()) as image:
        return _to_rgb(image, name)


def _name(item: Any) -> str:
    """Return what an image is called in errors."""
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return f"{'array' if isinstance(item, np.ndarray) else 'tensor'} of shape {tuple(item.shape)}"
    if isinstance(item, Image.Image):
        return getattr(item, "filename", "") or f"image of mode {item.mode}"
    if isinstance(item, ENCODED):
        return f"{len(cast(bytes, item))} bytes"
    return str(item) if isinstance(item, (str, Path)) else shorten(item)


@cache
def formats() -> list[str]:
    """Return those of ``FORMATS`` that this machine's Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return the image upright, as RGB, 16-bit and floating-point modes scaled to 8 bits, transparency on white."""
    _check_size(image, name)
    image = ImageOps.exif_transpose(image)
    _check_size(image, name)  # what a file holds may have another size than it says
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"{name} has values from {values.min()} to {values.max()}; at most 16 bits are read.")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode == "F":
        image = _from_array(np.asarray(image), name)
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _check_size(image: Image.Image, name: str) -> None:
    """Raise an :class:`InputError` by the size that the header states, before anything is decoded."""
    width, height = image.size
    if not width * height:
        raise InputError(f"{name} has no pixels: it is {width} x {height}.")
    if width * height > PIXEL_LIMIT:
        raise InputError(f"{name} has {width} x {height} pixels; at most {PIXEL_LIMIT:,} are read.")
    if max(width, height) > ASPECT_LIMIT * min(width, height):
        raise InputError(f"{name} is {width} x {height}; at most {ASPECT_LIMIT} times as long as wide is read.")


def _from_array(array: Any, name: str) -> Image.Image:
    if isinstance(array, torch.Tensor):
        if array.ndim == 3 and array.shape[0] not in (1, 3, 4):
            raise InputError(f"an image tensor is (1, H, W), (3, H, W) or (4, H, W), got {tuple(array.shape)}.")
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
        return _from_array((array.permute(1, 2, 0) if array.ndim == 3 else array).numpy(), name)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise InputError(f"an image array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); got {name}.")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise InputError(
                f"{name} has values from {array.min():.3g} to {array.max():.3g}; floating-point images lie in [0, 1]. "
                "Pass them before normalisation: the encoder's own is applied here."
            )
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(f"{name} has dtype {array.dtype}; images are uint8, or floating point in [0, 1].")
    return _to_rgb(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array), name)


def random_view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a crop of the same aspect ratio, half of the area or more, mirrored half of the time."""
    side = np.sqrt(rng.uniform(SMALLEST_CROP, 1))
    width, height = max(1, round(image.width * side)), max(1, round(image.height * side))
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    crop = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop
