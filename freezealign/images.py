"""Pictures: every form in which one is passed, read as upright RGB."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from freezealign.files import is_file
from freezealign.inputs import InputError, download, is_url, shorten

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
            without arguments that returns any of these, called when the image is due.

    Raises:
        InputError: If there is no such file, it is truncated or not an image, or the array has another shape or range.
    """
    item = item() if callable(item) else item
    if isinstance(item, Image.Image):
        return to_rgb(item, "the image")
    if isinstance(item, dict) and (item.get("bytes") or item.get("path")):
        item = item.get("bytes") or item["path"]
    if isinstance(item, ENCODED):
        item = item.getvalue() if isinstance(item, io.BytesIO) else item
        return _decode(io.BytesIO(item), f"{len(item)} bytes")
    if isinstance(item, torch.Tensor):
        return _from_array(_channels_last(item), f"tensor of shape {tuple(item.shape)}")
    if isinstance(item, np.ndarray):
        return _from_array(item, f"array of shape {item.shape}")
    if is_url(item):
        return _decode(io.BytesIO(download(item)), item)
    if isinstance(item, (str, Path)):
        if not is_file(item):
            raise InputError(f"no such image file: {shorten(str(item))}.")
        return _decode(Path(item), str(item))
    raise InputError(f"expected an image, got {shorten(item)} ({type(item).__name__}).")


@cache
def formats() -> list[str]:
    """Return those of ``FORMATS`` that this machine's Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _decode(source: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(source, formats=formats()) as image:
            return to_rgb(image, name)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"not an image: {name}.") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise whatever they happen to trip over
        raise InputError(f"cannot read the image {name}: {error}.") from None


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return the image upright, as RGB, 16-bit and floating-point modes scaled to 8 bits, transparency on white.

    Raises:
        InputError: If it is damaged, has no pixels or too many, or is longer than :data:`ASPECT_LIMIT` times its width.
    """
    _check_size(image, name)
    try:
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError) as error:
        raise InputError(f"cannot read the image {name}: {error}.") from None
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image, name)
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


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale integers, of 16 bits, by 1/257, and floats from [0, 1] if nothing exceeds 1, else from [0, 255]."""
    values: np.ndarray = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{name} has values that are NaN or Inf.")
    if image.mode == "F":
        values = values * 255 if values.max(initial=0) <= 1 else values
    else:
        values = values / 257
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8), mode="L")


def _channels_last(tensor: torch.Tensor) -> np.ndarray:
    if tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4):
        raise InputError(f"an image tensor is (1, H, W), (3, H, W) or (4, H, W), got {tuple(tensor.shape)}.")
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return (tensor.permute(1, 2, 0) if tensor.ndim == 3 else tensor).numpy()


def _from_array(array: np.ndarray, name: str) -> Image.Image:
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
    return to_rgb(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array), name)


def random_view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a crop of the same aspect ratio, half of the area or more, mirrored half of the time."""
    side = np.sqrt(rng.uniform(SMALLEST_CROP, 1))
    width, height = max(1, round(image.width * side)), max(1, round(image.height * side))
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    crop = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop
