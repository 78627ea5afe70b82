"""Sliding windows: what is cut, what an encoder keeps of it, and what comes out when maps are put together again."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate

from freezealign.encoders.timm import TimmEncoder
from freezealign.encoders.transformers import TransformersVisionEncoder
from freezealign.evaluation.windows import SlidingWindows, cell_map, center_crop_share

SMALL = SlidingWindows(short_side=24, window=16, stride=8)


@st.composite
def windows(draw, squash: bool | None = None) -> SlidingWindows:
    stride = draw(st.integers(1, 9))
    window = stride + draw(st.integers(0, 9))
    whole = draw(st.booleans()) if squash is None else squash
    return SlidingWindows(window + draw(st.integers(0, 9)), window, stride, squash=whole)


def coordinates(width: int, height: int) -> Image.Image:
    """A picture whose red tells the column and whose green the row, from 0 to 255."""
    pixels = np.zeros((height, width, 3))
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels.round().astype(np.uint8))


# Cutting


@given(windows=windows(), width=st.integers(1, 60), height=st.integers(1, 60))
def test_every_pixel_is_in_a_window_and_every_window_in_the_picture(windows, width, height):
    width, height = windows.resized_size(width, height)
    seen = np.zeros((height, width), dtype=bool)
    for left, top in windows.corners(width, height):
        assert 0 <= left <= width - windows.window
        assert 0 <= top <= height - windows.window
        seen[top : top + windows.window, left : left + windows.window] = True
    assert seen.all()


@given(windows=windows(), width=st.integers(1, 60), height=st.integers(1, 60))
def test_no_window_comes_twice(windows, width, height):
    corners = windows.corners(*windows.resized_size(width, height))
    assert len(set(corners)) == len(corners)


@settings(max_examples=30)
@given(windows=windows(), width=st.integers(1, 40), height=st.integers(1, 40), keep=st.floats(0.5, 1))
def test_there_is_a_window_for_each_corner_and_all_are_of_one_size(windows, width, height, keep):
    cut = windows.cut(Image.new("RGB", (width, height)), keep)
    assert len(cut) == len(windows.corners(*windows.resized_size(width, height)))
    assert len({window.size for window in cut}) == 1
    assert cut[0].size[0] == pytest.approx(windows.window / keep, abs=1)


@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_shorter_side_has_its_size_and_proportions_stay(width, height):
    new_width, new_height = SMALL.resized_size(width, height)
    assert min(new_width, new_height) == 24
    assert abs(new_width * height - new_height * width) <= 0.5 * max(width, height)


def test_windows_are_cut_row_by_row():
    assert SMALL.corners(24, 32) == [(0, 0), (8, 0), (0, 8), (8, 8), (0, 16), (8, 16)]


def test_last_window_ends_with_the_picture():
    assert SMALL.corners(29, 24)[:3] == [(0, 0), (8, 0), (13, 0)]


def test_windows_hold_the_pixels_of_their_corners():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    for window, (left, top) in zip(SMALL.cut(Image.fromarray(pixels)), SMALL.corners(40, 24)):
        assert np.array_equal(np.asarray(window), pixels[top : top + 16, left : left + 16])


def test_squashed_picture_is_a_square():
    squashed = SlidingWindows(16, 16, 16, squash=True)
    assert squashed.resized_size(300, 20) == (16, 16)
    assert len(squashed.cut(Image.new("RGB", (300, 20)))) == 1


def test_picture_of_one_pixel_has_its_colour_everywhere():
    cut = SMALL.cut(Image.new("RGB", (1, 1), (9, 8, 7)))
    assert len(cut) == 4
    assert all((np.asarray(window) == (9, 8, 7)).all() for window in cut)


@pytest.mark.parametrize("size", [(2, 200), (200, 2)])
def test_very_long_picture_is_cut_into_many_windows(size):
    cut = SMALL.cut(Image.new("RGB", size))
    assert len(cut) == 2 * (2400 - 16 + 8) // 8
    maps = [torch.ones(1, 2, 2)] * len(cut)
    assert SMALL.merge(maps, size).shape == (1, size[1], size[0])


@pytest.mark.parametrize(
    "numbers", [(24, 16, 17), (16, 24, 8), (24, 16, 0), (24, 16, -1), (0, 0, 0)], ids=lambda numbers: str(numbers)
)
def test_windows_that_leave_gaps_or_do_not_fit_are_refused(numbers):
    with pytest.raises(ValueError, match="stride ≤ window ≤ short_side"):
        SlidingWindows(*numbers)


def test_windows_say_what_they_do():
    assert str(SMALL) == "shorter side 24 px, windows of 16 px every 8 px"
    assert "24 x 24" in str(SlidingWindows(24, 16, 8, squash=True))


# Merging


@settings(max_examples=40)
@given(
    windows=windows(),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_constant_maps_merge_to_that_constant(windows, width, height, grid):
    maps = [torch.tensor([0.25, -3.0])[:, None, None].expand(2, *grid)] * len(
        windows.corners(*windows.resized_size(width, height))
    )
    merged = windows.merge(maps, (width, height))
    assert merged.shape == (2, height, width)
    torch.testing.assert_close(merged, torch.tensor([0.25, -3.0])[:, None, None].expand(2, height, width))


@settings(max_examples=30)
@given(windows=windows(), width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 99))
def test_merged_values_stay_between_the_lowest_and_the_highest(windows, width, height, seed):
    count = len(windows.corners(*windows.resized_size(width, height)))
    maps = list(torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(seed)))
    merged = windows.merge(maps, (width, height))
    assert min(map(torch.min, maps)) - 1e-6 <= merged.min()
    assert merged.max() <= max(map(torch.max, maps)) + 1e-6


def test_tiled_is_plain_when_the_window_is_the_whole_picture():
    whole, values = SlidingWindows(24, 24, 5), torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = interpolate(values[None], size=(24, 24), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(whole.merge([values], (24, 24)), plain)


def test_overlapping_windows_are_averaged():
    narrow = SlidingWindows(2, 2, 1)  # columns 0–1 and 1–2 of a picture of three columns
    maps = [torch.zeros(1, 1, 1), torch.ones(1, 1, 1)]
    assert narrow.merge(maps, (3, 2))[0].tolist() == [[0, 0.5, 1], [0, 0.5, 1]]


@settings(max_examples=30)
@given(windows=windows(squash=False), width=st.integers(20, 60), height=st.integers(20, 60))
def test_maps_of_coordinates_merge_to_the_pictures_coordinates(windows, width, height):
    # Each window shows where its own pixels lie in the picture: any shift of a window would bend the slope.
    assume(windows.short_side <= min(width, height))
    wide, high = windows.resized_size(width, height)
    inside = torch.arange(windows.window) + 0.5
    maps = [
        torch.stack(torch.meshgrid((inside + top) / high, (inside + left) / wide, indexing="ij"))
        for left, top in windows.corners(wide, high)
    ]
    rows, columns = windows.merge(maps, (width, height))
    tolerance = 1 / windows.short_side
    assert (rows[:, 0] - (torch.arange(height) + 0.5) / height).abs().max() <= tolerance
    assert (columns[0] - (torch.arange(width) + 0.5) / width).abs().max() <= tolerance


# What the encoder keeps


def timm_encoder(crop_pct: float, crop_mode: str = "center") -> TimmEncoder:
    settings = {"input_size": (3, 56, 56), "crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": "bicubic"}
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    shape = {"img_size": 56, "patch_size": 14, "embed_dim": 4, "depth": 1, "num_heads": 1}
    model = timm.create_model("vit_tiny_patch16_224", pretrained_cfg_overlay={**settings, **plain}, **shape)
    return TimmEncoder(model)


def transformers_encoder(shortest_edge: int, crop: int = 56, **options) -> TransformersVisionEncoder:
    shape = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": crop, "patch_size": 14}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**shape))
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": shortest_edge},
        crop_size={"height": crop, "width": crop},
        image_mean=[0, 0, 0],
        image_std=[1, 1, 1],
        **options,
    )
    return TransformersVisionEncoder(model, processor)


ENCODERS = {
    "timm 0.875": lambda: timm_encoder(0.875),
    "timm 0.9": lambda: timm_encoder(0.9),
    "timm 0.95": lambda: timm_encoder(0.95),
    "transformers 64 to 56": lambda: transformers_encoder(64),
    "transformers 72 to 56": lambda: transformers_encoder(72),
}


def shift(encoder, keep: float) -> float:
    """How far, at most, what an encoder keeps of a window lies off that window, in colours of :func:`coordinates`."""
    squares, image = SlidingWindows(224, 112, 56), coordinates(336, 224)
    kept = encoder.preprocess(squares.cut(image, keep))["pixel_values"] * 255
    whole = [np.asarray(window.resize((56, 56), Image.Resampling.BICUBIC)) for window in squares.cut(image)]
    expected = torch.from_numpy(np.stack(whole)).permute(0, 3, 1, 2)
    return float((kept - expected)[:, :2].abs().max())


@pytest.mark.parametrize("name", ENCODERS)
def test_what_a_cropping_encoder_keeps_is_the_window_itself(name):
    encoder = ENCODERS[name]()
    assert encoder.center_crop_share < 1
    # The window's 112 pixels are 127 of 256 greens: 2.5 are a little more than two pixels.
    assert shift(encoder, encoder.center_crop_share) < 2.5
    assert shift(encoder, keep=1) > shift(encoder, encoder.center_crop_share) + 0.5


@pytest.mark.parametrize("encoder", [timm_encoder(1.0), transformers_encoder(56)], ids=["timm", "transformers"])
def test_encoder_that_crops_nothing_is_given_the_window(encoder):
    assert encoder.center_crop_share == 1
    assert shift(encoder, 1) < 2.5


def test_encoder_that_squashes_is_given_the_window(model):
    assert center_crop_share(model) == 1


def test_margin_repeats_the_pictures_edge():
    image = Image.new("RGB", (16, 16), "red")
    (window,) = SlidingWindows(16, 16, 16).cut(image, keep=0.5)
    assert window.size == (32, 32)
    assert (np.asarray(window) == (255, 0, 0)).all()


def test_model_that_does_not_say_keeps_everything():
    assert center_crop_share(object()) == 1
    assert center_crop_share(SimpleNamespace(encoders={"text": None})) == 1


def test_share_is_the_image_encoders():
    inner = SimpleNamespace(encoder=SimpleNamespace(center_crop_share=0.875))
    assert center_crop_share(SimpleNamespace(encoders={"image": inner})) == 0.875


# Similarities of cells


def test_cell_map_is_row_major():
    patches, classes = torch.eye(6), torch.eye(6)[[4, 1]]
    maps = cell_map(classes, patches, (2, 3))
    assert maps.tolist() == [[[0, 0, 0], [0, 1, 0]], [[0, 1, 0], [0, 0, 0]]]


def test_cell_map_takes_patches_of_half_precision():
    assert cell_map(torch.eye(4), torch.eye(4).half(), (2, 2)).dtype == torch.float32
