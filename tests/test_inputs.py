from __future__ import annotations

import http.server
import io
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from freezealign import FrozenEncoder, images, inputs
from freezealign.images import read_image
from freezealign.inputs import InputError
from freezealign.modality import read_item, read_text
from freezealign.space.recognise import as_items, infer_modality, is_single

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
TOWERS = {"image": "image", "text": "text"}


def pixel(item) -> tuple[int, int, int]:
    image = read_image(item)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int = 16, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


# PIL modes


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, WHITE),
        ("1", 0, BLACK),
        ("L", 77, (77, 77, 77)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("CMYK", (0, 0, 0, 0), WHITE),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (255, 128, 128), WHITE),
    ],
)
def test_an_opaque_image_of_any_mode_becomes_rgb(mode, colour, expected):
    assert pixel(Image.new(mode, (3, 2), colour)) == expected


@pytest.mark.parametrize("mode", ["L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "LAB", "HSV", "I;16B", "I;16L"])
def test_every_mode_of_pil_can_be_read(mode):
    assert read_image(Image.new(mode, (3, 2))).size == (3, 2)


@pytest.mark.parametrize(("mode", "colour"), [("LA", (9, 0)), ("RGBA", (9, 9, 9, 0))])
def test_full_transparency_is_laid_on_white(mode, colour):
    assert pixel(Image.new(mode, (3, 2), colour)) == WHITE


def test_half_transparency_is_blended_with_white():
    assert pixel(Image.new("RGBA", (3, 2), (0, 0, 0, 128))) == pytest.approx((127, 127, 127), abs=1)


def test_a_palette_image_keeps_its_colours_and_lays_its_transparent_colour_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 1
    assert [read_image(image).getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), WHITE]


def test_a_png_with_a_transparent_palette_colour_is_read_the_same_from_a_file(tmp_path):
    image = Image.new("P", (2, 1), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "palette.png", transparency=1)
    assert pixel(tmp_path / "palette.png") == WHITE


@pytest.mark.parametrize("mode", ["I", "I;16"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (255, 1), (256, 1), (65535, 255), (257 * 100, 100)])
def test_a_16_bit_image_is_scaled_to_8_bits_and_not_clipped(mode, value, expected):
    assert pixel(Image.new(mode, (3, 2), value)) == (expected,) * 3


def test_a_16_bit_png_is_scaled_to_8_bits(tmp_path):
    Image.fromarray(np.full((2, 3), 257 * 100, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert pixel(tmp_path / "deep.png") == (100, 100, 100)


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0), (1.0, 255), (0.2, 51)])
def test_a_float_image_lies_in_0_to_1_as_a_float_array_does(value, expected):
    assert pixel(Image.fromarray(np.full((2, 3), value, dtype=np.float32))) == (expected,) * 3


@pytest.mark.parametrize(
    ("dtype", "value", "remedy"),
    [
        (np.float32, 200, r"from 200 to 200; floating-point images lie in \[0, 1\]"),
        (np.float32, 1.01, r"lie in \[0, 1\]"),
        (np.int32, 65536, "from 65536 to 65536; at most 16 bits are read"),
        (np.int32, -1, "from -1 to -1; at most 16 bits are read"),
    ],
)
def test_values_beyond_those_of_the_mode_are_refused_and_not_scaled_by_the_largest(dtype, value, remedy):
    with pytest.raises(InputError, match=remedy):
        read_image(Image.fromarray(np.full((2, 3), value, dtype=dtype)))


def test_a_float_image_with_nan_is_refused_rather_than_read_as_black():
    with pytest.raises(InputError):
        read_image(Image.fromarray(np.array([[np.nan, 1.0]], dtype=np.float32)))


def test_the_image_given_is_left_as_it_was():
    image = Image.new("RGBA", (3, 2), (0, 0, 0, 0))
    read_image(image)
    assert image.mode == "RGBA" and image.getpixel((0, 0)) == (0, 0, 0, 0)


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.new("RGB", (32, 16), "red")
    upright.paste("blue", (0, 0, 16, 8))
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_image(encoded(stored, "PNG", exif=exif))
    assert np.array_equal(np.asarray(read), np.asarray(upright))


# Where an image comes from


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_read(tmp_path, kind):
    noise().save(tmp_path / "picture.png")
    assert np.array_equal(read_image(kind(tmp_path / "picture.png")), noise())


def test_encoded_bytes_are_read():
    assert np.array_equal(read_image(encoded(noise())), noise())


def test_an_undecoded_image_of_datasets_is_read_from_its_bytes():
    assert np.array_equal(read_image({"bytes": encoded(noise()), "path": "only-a-name.png"}), noise())


def test_an_undecoded_image_of_datasets_without_bytes_is_read_from_its_path(tmp_path):
    noise().save(tmp_path / "picture.png")
    assert np.array_equal(read_image({"bytes": None, "path": str(tmp_path / "picture.png")}), noise())


def test_a_function_is_called_when_the_image_is_due(tmp_path):
    noise().save(tmp_path / "picture.png")
    assert np.array_equal(read_image(lambda: tmp_path / "picture.png"), noise())


def test_the_first_frame_of_an_animation_is_read():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert pixel(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)


# Arrays and tensors


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3)])
def test_a_uint8_array_is_read_value_for_value(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = np.broadcast_to(array.reshape(5, 6, -1), (5, 6, 3))
    assert np.array_equal(read_image(array), expected)


def test_the_fourth_channel_of_an_array_is_transparency_laid_on_white():
    array = np.zeros((2, 2, 4), dtype=np.uint8)
    array[0, 0, 3] = 255
    read = read_image(array)
    assert (read.getpixel((0, 0)), read.getpixel((1, 1))) == (BLACK, WHITE)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_float_array_gives_back_all_256_levels(dtype):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(np.asarray(read_image((levels / 255).astype(dtype)))[..., 0], levels)


@pytest.mark.parametrize(("value", "level"), [(0.999, 255), (0.498, 127), (0.0019, 0), (0.002, 1)])
def test_a_float_is_rounded_to_the_nearest_level(value, level):
    assert pixel(np.full((2, 2), value)) == (level,) * 3


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_float_array_may_have_1_3_or_4_channels(channels):
    assert pixel(np.ones((2, 2, channels), dtype=np.float32)) == WHITE


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3])),
    st.integers(0, 2**16),
)
def test_a_tensor_is_the_array_with_channels_first(shape, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    assert np.array_equal(read_image(tensor), read_image(array))


def test_a_tensor_of_two_dimensions_is_grey():
    assert pixel(torch.full((2, 3), 0.2)) == (51, 51, 51)


def test_the_fourth_channel_of_a_tensor_is_transparency():
    assert pixel(torch.zeros(4, 2, 2)) == WHITE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_tensor_of_any_float_type_is_read(dtype):
    assert pixel(torch.full((3, 2, 2), 0.5, dtype=dtype)) == pytest.approx((128, 128, 128), abs=1)


def test_a_tensor_that_requires_grad_is_read():
    assert pixel(torch.ones(3, 2, 2, requires_grad=True)) == WHITE


@pytest.mark.parametrize("channels", [2, 5])
def test_an_array_with_another_number_of_channels_is_refused(channels):
    with pytest.raises(InputError, match=rf"\(H, W, 3\).*\(6, 7, {channels}\)"):
        read_image(np.zeros((6, 7, channels), dtype=np.uint8))


@pytest.mark.parametrize("channels", [2, 5])
def test_a_tensor_with_another_number_of_channels_is_refused(channels):
    with pytest.raises(InputError, match=rf"\(3, H, W\).*\({channels}, 6, 7\)"):
        read_image(torch.zeros(channels, 6, 7))


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2, 3), (0, 4), (4, 0, 3)])
def test_an_array_without_two_or_three_full_dimensions_is_refused(shape):
    with pytest.raises(InputError, match=r"\(H, W\)"):
        read_image(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize(("low", "high", "named"), [(-0.5, 1.0, "-0.5"), (0.0, 255.0, "255"), (0.0, 1.01, "1.01")])
def test_floats_outside_0_to_1_are_refused_with_their_range_and_the_remedy(low, high, named):
    array = np.linspace(low, high, 12, dtype=np.float32).reshape(2, 2, 3)
    with pytest.raises(InputError, match=rf"{named}.*\[0, 1\].*before normalisation"):
        read_image(array)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_array_that_is_not_finite_is_refused(bad):
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        read_image(np.array([[0.5, bad]]))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, np.bool_])
def test_other_integer_types_are_refused_by_name(dtype):
    with pytest.raises(InputError, match=rf"{np.dtype(dtype)}.*uint8"):
        read_image(np.zeros((2, 2), dtype=dtype))


def test_an_integer_tensor_is_refused_by_name():
    with pytest.raises(InputError, match=r"int64.*uint8"):
        read_image(torch.zeros(3, 2, 2, dtype=torch.int64))


# Broken input


def test_a_truncated_jpeg_is_refused_by_path(tmp_path):
    path = tmp_path / "half.jpg"
    path.write_bytes(encoded(noise(64, 64), "JPEG")[:900])
    with pytest.raises(InputError, match=r"half\.jpg.*truncated"):
        read_image(path)


def test_an_error_names_its_file_once(tmp_path):
    path = tmp_path / "half.jpg"
    path.write_bytes(encoded(noise(64, 64), "JPEG")[:900])
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(caught.value).count("half.jpg") == 1


def test_a_truncated_image_that_is_already_open_is_refused(tmp_path):
    path = tmp_path / "half.jpg"
    path.write_bytes(encoded(noise(64, 64), "JPEG")[:900])
    with Image.open(path) as image, pytest.raises(InputError, match="truncated"):
        read_image(image)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF"])
def test_a_damaged_image_is_read_or_refused_but_never_another_error(kind):
    if kind in ("WEBP", "AVIF") and not features.check(kind.lower()):
        pytest.skip(f"this Pillow cannot write {kind}")
    content = encoded(noise(), kind)
    for position in range(0, len(content), max(1, len(content) // 300)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        for data in (bytes(damaged), content[:position]):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    assert read_image(data).mode == "RGB"
                except InputError:
                    continue


def test_a_file_that_is_no_image_is_refused_by_path(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("these are my notes")
    with pytest.raises(InputError, match=r"not an image: .*notes\.png"):
        read_image(str(path))


def test_empty_bytes_are_refused():
    with pytest.raises(InputError, match="not an image: 0 bytes"):
        read_image(b"")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_missing_file_is_refused_by_path(tmp_path, kind):
    with pytest.raises(InputError, match=r"no such image file: .*gone\.png"):
        read_image(kind(tmp_path / "gone.png"))


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(InputError, match=tmp_path.name):
        read_image(tmp_path)


def test_a_caption_given_as_an_image_is_refused_even_if_it_is_longer_than_a_path_may_be():
    with pytest.raises(InputError, match="no such image file"):
        read_image("a very long caption of a red apple on a table " * 20)


@pytest.mark.parametrize("item", [None, 3, object(), {"bytes": None, "path": None}, ["a.png"]])
def test_what_is_no_image_is_refused_with_its_type(item):
    with pytest.raises(InputError, match=rf"expected an image.*{type(item).__name__}"):
        read_image(item)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(InputError) as caught:
        read_image(["x"] * 10_000)
    assert len(str(caught.value)) < 200


def test_an_image_so_large_that_it_may_be_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="decompression bomb"):
        read_image(encoded(noise(64, 64)))


def icon(size: tuple[int, int]) -> bytes:
    """An ICO that says it is 16 x 16 and holds a PNG of another size."""
    inner = encoded(Image.new("L", size))
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inner


@pytest.mark.parametrize("action", ["ignore", "error"])
@pytest.mark.parametrize("size", [(20, 20 * 60), (200, 200)])
def test_a_picture_that_is_larger_than_its_file_says_is_refused(size, action, monkeypatch):
    monkeypatch.setattr(images, "PIXEL_LIMIT", 30_000)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(InputError):
            read_image(icon(size))


def test_a_text_in_a_picture_that_swells_when_it_is_unpacked_is_bounded():
    bomb = zlib.compress(b"x" * 20_000_000)
    chunk = b"zTXtComment\0\0" + bomb
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    content = encoded(noise())
    with pytest.raises(InputError):
        read_image(content[:33] + chunk + content[33:])


# Addresses


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/picture.png":
            self.answer(200, encoded(noise()))
        elif self.path == "/page.png":
            self.answer(200, b"<html>sign in</html>")
        elif self.path == "/garbage.png":
            self.wfile.write(b"this is not HTTP\r\n\r\n")
        elif self.path == "/silent.png":
            time.sleep(0.5)
        else:
            self.answer(404, b"gone")

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site_address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def site(site_address, monkeypatch) -> str:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return site_address


def test_an_address_is_fetched(site):
    assert np.array_equal(read_image(f"{site}/picture.png"), noise())


def test_an_address_that_serves_nothing_is_refused_with_the_status(site):
    with pytest.raises(InputError, match=rf"cannot fetch {site}/gone\.png.*404"):
        read_image(f"{site}/gone.png")


def test_an_address_that_serves_a_page_is_no_image(site):
    with pytest.raises(InputError, match=rf"not an image: {site}/page\.png"):
        read_image(f"{site}/page.png")


def test_a_server_that_speaks_no_http_is_refused(site):
    with pytest.raises(InputError, match=r"garbage\.png"):
        read_image(f"{site}/garbage.png")


def test_a_server_that_does_not_answer_in_time_is_refused(site, monkeypatch):
    monkeypatch.setattr(inputs, "URL_TIMEOUT_SECONDS", 0.1)
    with pytest.raises(InputError, match=r"silent\.png.*timed out"):
        read_image(f"{site}/silent.png")


def test_a_download_above_the_limit_is_refused(site, monkeypatch):
    monkeypatch.setattr(inputs, "URL_LIMIT_BYTES", 10)
    with pytest.raises(InputError, match=r"cannot fetch .*picture\.png: it is larger than"):
        read_image(f"{site}/picture.png")


def test_a_server_that_cannot_be_reached_is_refused(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(InputError, match=r"cannot fetch http://127\.0\.0\.1:9/a\.png"):
        read_image("http://127.0.0.1:9/a.png")


@pytest.mark.parametrize("address", ["http://", "http://127.0.0.1:port/a.png", "http://[1/a.png"])
def test_a_malformed_address_is_refused(address):
    with pytest.raises(InputError, match="cannot fetch"):
        read_image(address)


# Texts


def test_a_text_is_read_as_it_is():
    assert read_text("  ein roter Apfel ") == "  ein roter Apfel "


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u2003"])
def test_an_empty_text_is_refused(text):
    with pytest.raises(InputError, match="the text is empty"):
        read_text(text)


@pytest.mark.parametrize("item", [None, 3, b"bytes", ["a", "b"]])
def test_what_is_no_text_is_refused_with_value_and_type(item):
    with pytest.raises(InputError) as caught:
        read_text(item)
    assert repr(item) in str(caught.value) and type(item).__name__ in str(caught.value)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_an_encoder_says_what_it_expected_instead_of_none(modality):
    encoder = FrozenEncoder(lambda items: np.zeros((len(items), 2), dtype=np.float32), modality)
    with pytest.raises(InputError, match=f"got None where {modality} was expected"):
        encoder.preprocess([None])


def test_an_encoder_reads_an_item_that_names_its_modality():
    encoder = FrozenEncoder(lambda items: np.zeros((len(items), 2), dtype=np.float32), "text")
    assert encoder.read({"text": "a cat"}) == "a cat"


# Which tower an item belongs to


@pytest.mark.parametrize(
    "item",
    [
        Image.new("RGB", (2, 2)),
        Path("picture.png"),
        b"encoded",
        np.zeros((2, 2, 3)),
        torch.zeros(3, 2, 2),
        {"bytes": b"encoded", "path": None},
        lambda: None,
        "http://example.org/picture",
        "https://example.org/picture.jpg?size=large",
    ],
    ids=lambda item: type(item).__name__,
)
def test_it_is_an_image(item):
    assert infer_modality(item, TOWERS) == "image"


@pytest.mark.parametrize(
    "item",
    ["a cat", "", "a.b", "see http://example.org/a", "http:// is how addresses begin", "first\nsecond.png"],
)
def test_it_is_a_text_without_a_warning(item, recwarn):
    assert infer_modality(item, TOWERS) == "text"
    assert not recwarn


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".webp", ".tiff"])
def test_the_path_of_an_existing_image_is_an_image_without_a_warning(tmp_path, suffix, recwarn):
    path = tmp_path / f"picture{suffix}"
    path.touch()
    assert infer_modality(str(path), TOWERS) == "image"
    assert not recwarn


def test_the_path_of_an_existing_file_that_is_no_image_is_a_text(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert infer_modality(str(tmp_path / "notes.txt"), TOWERS) == "text"


def test_a_misspelt_image_path_is_a_text_with_a_warning_that_says_what_to_do():
    with pytest.warns(UserWarning, match=r"pictures/cta\.jpg.*no file.*text.*encode_image or encode_text"):
        assert infer_modality("pictures/cta.jpg", TOWERS) == "text"


def test_a_caption_that_ends_like_a_path_may_be_longer_than_a_path():
    with pytest.warns(UserWarning, match="looks like an image path"):
        assert infer_modality("a long caption of " * 50 + "cat.jpg", TOWERS) == "text"


def test_a_dict_names_its_tower():
    towers = {"image": "image", "text": "text", "audio": "audio"}
    assert [infer_modality({name: "x"}, towers) for name in towers] == list(towers)


def test_a_tower_is_found_by_its_encoders_modality_whatever_its_name():
    towers = {"photo": "image", "caption": "text"}
    assert (infer_modality(b"x", towers), infer_modality("a cat", towers)) == ("photo", "caption")


def test_a_model_that_reads_no_images_takes_paths_and_addresses_as_texts(recwarn):
    assert infer_modality("http://example.org/a.png", {"text": "text"}) == "text"
    assert infer_modality("missing.png", {"text": "text"}) == "text"
    assert not recwarn


def test_an_image_for_a_model_without_image_tower_is_refused_with_what_the_model_has():
    with pytest.raises(InputError, match=r"looks like image.*only \['text'\]"):
        infer_modality(b"encoded", {"text": "text"})


def test_a_text_for_a_model_with_two_text_towers_must_be_told_apart():
    with pytest.raises(InputError, match=r"\['english', 'german'\].*modality="):
        infer_modality("ein Apfel", {"english": "text", "german": "text"})


@pytest.mark.parametrize("item", [None, 3, 2.5, object()])
def test_an_item_of_no_known_kind_is_refused_with_the_remedy(item):
    with pytest.raises(InputError, match=rf"{type(item).__name__}.*\{{modality: item\}}"):
        infer_modality(item, TOWERS)


# One item or several


@pytest.mark.parametrize(
    "item",
    ["a cat", b"x", Path("a.png"), Image.new("RGB", (2, 2)), {"text": "a"}, np.zeros((2, 2, 3)), torch.zeros(3, 2, 2)],
    ids=lambda item: type(item).__name__,
)
def test_one_item_is_single(item):
    assert is_single(item) and as_items(item)[0] is item


@pytest.mark.parametrize("items", [["a", "b"], ("a", "b"), (c for c in "ab"), np.array(["a", "b"])])
def test_a_collection_of_texts_is_its_elements(items):
    assert not is_single(items) and as_items(items) == ["a", "b"]


@pytest.mark.parametrize("batch", [np.zeros((5, 2, 2, 3), dtype=np.uint8), torch.zeros(5, 3, 2, 2)])
def test_a_batch_of_images_is_its_images(batch):
    assert not is_single(batch)
    assert [pixel(item) for item in as_items(batch)] == [BLACK] * 5


# One item's failure


@pytest.mark.parametrize("error", [OSError("gone"), MemoryError(), RuntimeError("x"), ZeroDivisionError()])
def test_whatever_reading_one_item_raises_is_its_own_failure(error):
    def item():
        raise error

    with pytest.raises(InputError, match=type(error).__name__):
        read_item(item, "image")


def test_a_closed_picture_is_its_own_failure():
    image = noise()
    image.close()
    with pytest.raises(InputError):
        read_item(image, "image")


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((1, 10_000), "at most 50 times as long"),
        ((12_000, 12_000), "at most 100,000,000 are read"),
        ((0, 5), "has no pixels"),
    ],
)
def test_a_picture_beyond_the_limits_is_refused(size, reason):
    with pytest.raises(InputError, match=reason):
        read_image(Image.new("1", size))


def test_an_eps_is_never_opened():
    with pytest.raises(InputError, match="not an image"):
        read_image(encoded(noise(), "EPS"))


@pytest.mark.parametrize("value", [255, 256, 257, 65535])
def test_16_bits_are_scaled_by_the_mode_alone(value):
    assert pixel(Image.new("I;16", (3, 2), value)) == (round(value / 257),) * 3


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_a_file_in_memory_is_one_picture(kind):
    item = kind(encoded(noise()))
    assert is_single(item) and infer_modality(item, TOWERS) == "image"
    assert np.array_equal(read_image(item), noise())
