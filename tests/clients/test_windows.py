from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from amdim_clients.errors import ImageError, ScaleError
from amdim_clients.images import Preprocess, load_rgb
from amdim_clients.windows import check_scales, decode_windows, plan_grid, plan_grids

PREPROCESS = Preprocess.for_image_size(64)


def encoded(width: int, height: int, kind: str = "PNG", **options: object) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("width", "height", "scale", "pixels", "windows"),
    [
        (500, 375, 1, (64, 88), (1, 4)),  # 85.3 is nearer to 88 than to 80
        (500, 375, 2, (128, 168), (9, 14)),
        (375, 500, 1.5, (128, 96), (9, 5)),
        (64, 64, 1, (64, 64), (1, 1)),
        (3, 2, 4, (256, 384), (25, 41)),
    ],
)
def test_the_short_side_is_s_times_the_scale(width, height, scale, pixels, windows):
    grid = plan_grid(width, height, scale, 64)
    assert (grid.height, grid.width) == pixels
    assert (grid.rows, grid.columns) == windows


def test_a_thirty_two_pixel_encoder_has_its_own_stride():
    grid = plan_grid(100, 50, 1, 32)
    assert (grid.height, grid.width, grid.stride, grid.columns) == (32, 64, 4, 9)


def test_boxes_are_parts_of_the_upright_picture():
    grid = plan_grid(500, 375, 2, 64)
    boxes = grid.boxes()
    assert boxes.shape == (9, 14, 4) and boxes.dtype == np.float32
    np.testing.assert_allclose(boxes[3, 5], grid.box(3, 5), rtol=1e-6)
    np.testing.assert_allclose(grid.first_box, (0, 0, 64 / 168, 0.5))
    dx, dy = grid.step
    np.testing.assert_allclose(boxes[1, 1] - boxes[0, 0], [dx, dy, dx, dy], rtol=1e-5)
    np.testing.assert_allclose(boxes[-1, -1, 2:], 1.0)


def test_all_scales_share_the_limit():
    alone = plan_grid(500, 375, 2, 64, max_windows=126)
    assert alone.rows * alone.columns == 126
    assert len(plan_grids(500, 375, (1, 2), 64, max_windows=130)) == 2
    for scales in ((2,), (1, 2)):
        with pytest.raises(ImageError) as caught:
            plan_grids(500, 375, scales, 64, max_windows=125 if len(scales) == 1 else 129)
        assert caught.value.code == "too_many_windows"


@pytest.mark.parametrize("scales", [(), (0.5,), (5,), (1, 1), (1, 2, 3, 4, 1.5), (float("nan"),)])
def test_scales_out_of_range_are_refused(scales):
    with pytest.raises(ScaleError, match="one to four different numbers"):
        check_scales(scales)


def test_every_scale_is_a_resize_of_the_whole_picture():
    data = encoded(150, 100)
    one, two = decode_windows(data, PREPROCESS)
    assert [one[0].scale, two[0].scale] == [1.0, 2.0]
    for grid, pixels in (one, two):
        assert pixels.shape == (grid.height, grid.width, 3) and pixels.flags.c_contiguous
        size = (grid.width, grid.height)
        want = np.asarray(load_rgb(data).resize(size, Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(pixels, want)


def test_a_picture_that_lies_on_its_side_is_turned_first():
    exif = Image.Exif()
    exif[0x0112] = 6
    ((grid, _),) = decode_windows(encoded(150, 100, "JPEG", exif=exif), PREPROCESS, (1,))
    assert (grid.height, grid.width) == (96, 64)


def test_a_large_jpeg_is_decoded_at_a_reduced_size_and_looks_the_same():
    ((grid, pixels),) = decode_windows(encoded(1600, 1200, "JPEG", quality=95), PREPROCESS, (2,))
    full = load_rgb(encoded(1600, 1200)).resize((grid.width, grid.height))
    assert np.abs(pixels.astype(int) - np.asarray(full)).mean() < 2


def test_a_strip_has_too_many_windows_and_no_pixels_of_it_are_made():
    with pytest.raises(ImageError) as caught:
        decode_windows(encoded(8000, 2), PREPROCESS)
    assert caught.value.code == "too_many_windows"
