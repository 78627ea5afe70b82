"""What counts as an image or a text, and how each is read. Every error names the value and the remedy."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from freezealign.files import is_file

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"})
URL_TIMEOUT_SECONDS = 30
URL_LIMIT_BYTES = 100 * 2**20


class InputError(ValueError):
    """An item that cannot be read as what it should be; the message says which and why."""


def shorten(value: Any, limit: int = 80) -> str:
    """Return ``repr(value)``, cut to ``limit`` characters, for error messages."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def is_url(value: Any) -> bool:
    """Whether ``value`` is a string that is one http(s) address."""
    return isinstance(value, str) and value.startswith(("http://", "https://")) and not any(map(str.isspace, value))


def looks_like_image_path(value: str) -> bool:
    """Whether a string ends in an image suffix and has no line break."""
    return Path(value).suffix.lower() in IMAGE_SUFFIXES and "\n" not in value


def is_single(inputs: Any) -> bool:
    """Whether ``inputs`` is one item rather than a collection of items."""
    if isinstance(inputs, (str, bytes, Path, Image.Image, dict)):
        return True
    if isinstance(inputs, (np.ndarray, torch.Tensor)):
        return inputs.ndim in (2, 3) and not _is_text_array(inputs)
    return not (hasattr(inputs, "__iter__") or hasattr(inputs, "__len__"))


def as_items(inputs: Any) -> list[Any]:
    """Return the items of ``inputs`` as a list: a 4-D array or tensor is a batch of images."""
    return [inputs] if is_single(inputs) else list(inputs)


def _is_text_array(inputs: Any) -> bool:
    return isinstance(inputs, np.ndarray) and inputs.dtype.kind in "UO"


def infer_modality(item: Any, towers: Mapping[str, str]) -> str:
    """Return the tower that one item belongs to.

    A dict with one key names its tower: ``{"audio": x}``. Images, paths, bytes, arrays and tensors are images. A
    string is a text, unless it is an http(s) address or ends in an image suffix *and* is an existing file. A string
    that looks like an image path but is no file is a text, with a warning: say which with ``modality=`` or
    ``encode_image`` / ``encode_text``.

    Args:
        item: What to look at.
        towers: For each tower the modality of its encoder; the two differ where the user chose the tower's name.

    Raises:
        InputError: If the item is of no known kind, or the model has no tower, or several, for it.
    """
    if isinstance(item, dict) and len(item) == 1 and (name := str(next(iter(item)))) not in ("bytes", "path"):
        if name not in towers:
            raise InputError(f"{shorten(item)} is for a '{name}' tower, but the model has only {list(towers)}.")
        return name
    kind = _kind(item, "image" in towers.values())
    fitting = [name for name, modality in towers.items() if modality == kind]
    if len(fitting) != 1:
        found = f"several {kind} towers, {fitting}; pass modality=…" if fitting else f"only {list(towers)}"
        raise InputError(f"this looks like {kind}: {shorten(item)}, but the model has {found}.")
    return fitting[0]


def _kind(item: Any, reads_images: bool) -> str:
    if isinstance(item, str):
        return "image" if reads_images and _string_is_image(item) else "text"
    if callable(item) or isinstance(item, (Image.Image, Path, bytes, np.ndarray, torch.Tensor, dict)):
        return "image"
    raise InputError(
        f"cannot tell what {shorten(item)} is ({type(item).__name__}); pass an image (PIL, path, URL, bytes, array, "
        "tensor), a string, or {modality: item}."
    )


def _string_is_image(item: str) -> bool:
    if is_url(item):
        return True
    if not looks_like_image_path(item):
        return False
    if is_file(item):
        return True
    warnings.warn(
        f"{shorten(item)} looks like an image path but is no file, so it is taken as text; "
        "use encode_image or encode_text to say which it is.",
        stacklevel=2,
    )
    return False


def unwrap(item: Any, modality: str) -> Any:
    """Return ``item[modality]`` if the item is a dict that names its modality, else the item itself."""
    return item[modality] if isinstance(item, dict) and set(item) == {modality} else item


def read_text(item: Any) -> str:
    """Return the item if it is a non-empty string.

    Raises:
        InputError: If it is not a string, has nothing but white space, or is not valid Unicode.
    """
    if not isinstance(item, str):
        raise InputError(f"expected a text, got {shorten(item)} ({type(item).__name__}).")
    if not item.strip():
        raise InputError(f"the text is empty: {shorten(item)}.")
    if any("\ud800" <= letter <= "\udfff" for letter in item):
        raise InputError(f"the text is not valid Unicode (a lone surrogate): {shorten(item)}.")
    return item


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
    if isinstance(item, bytes):
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


def download(url: str) -> bytes:
    """Return what ``url`` serves.

    Raises:
        InputError: If it cannot be reached, sends nothing for 30 s, or is larger than 100 MiB.
    """
    from http.client import HTTPException
    from urllib.request import Request, urlopen

    try:
        request = Request(url, headers={"User-Agent": "freezealign"})
        with urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
            content: bytes = response.read(URL_LIMIT_BYTES + 1)
    except (HTTPException, OSError, ValueError) as error:
        raise InputError(f"cannot fetch {url}: {error}.") from None
    if len(content) > URL_LIMIT_BYTES:
        raise InputError(f"{url} is larger than {URL_LIMIT_BYTES // 2**20} MiB.")
    return content


def _decode(source: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(source) as image:
            return to_rgb(image, name)
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise InputError(f"not an image: {name}.") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise whatever they happen to trip over
        raise InputError(f"cannot read the image {name}: {error}.") from None


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return the image upright, as RGB, 16-bit and floating-point modes scaled to 8 bits, transparency on white."""
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


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit integer modes by 1/257, and float mode from [0, 1] if nothing exceeds 1, else from [0, 255]."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{name} has values that are NaN or Inf.")
    if image.mode == "F":
        values = values * 255 if values.max(initial=0) <= 1 else values
    elif values.max(initial=0) > 255:
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
