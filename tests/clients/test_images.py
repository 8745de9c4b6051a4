from __future__ import annotations

import contextlib
import csv
import io
import subprocess
import sys
import threading
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from amdim_clients.errors import ContractError, ImageError
from amdim_clients.images import (
    RESIZE_FOR,
    ImageLimits,
    Preprocess,
    decode_image,
    load_rgb,
    resize_and_crop,
)
from amdim_clients.sniff import FORMATS

PRE = Preprocess.for_image_size(64)
ONE_PIXEL = ImageLimits(min_side=1)
# Pillow reports these TIFFs turned already, and the manifest turned them once more.
TURNED_TWICE = {f"files/pil__g4_orientation_{n}.tif" for n in (6, 7, 8)}


def photo(width=300, height=200, mode="RGB"):
    rng = np.random.default_rng(7)
    small = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels_equal(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def code_of(data, limits=ONE_PIXEL):
    with pytest.raises(ImageError) as caught:
        decode_image(data, PRE, limits)
    return caught.value.code


def test_digest_of_version_1_is_pinned():
    # A change here means old indexes no longer match: raise PREPROCESS_VERSION with it.
    assert {side: Preprocess.for_image_size(side).digest for side in RESIZE_FOR} == {
        32: "sha256:f3631b0a8e9e7efbe9e4f6cb16d061b743e149c7a7801e1d047e2cd3fb19d596",
        64: "sha256:718ef39df441b8d71e1d60cd415a297e6f28fe7da811a486759accc3b1a3e449",
        128: "sha256:ae99932a4d3605940aac7288cf342b11f76b54f6ba8345c198ca710e25d8e7bf",
    }


def test_sizes_that_leave_nothing_to_crop_are_refused():
    with pytest.raises(ContractError):
        Preprocess(image_size=64, resize=32)
    with pytest.raises(ContractError):
        Preprocess.for_image_size(48)


@pytest.mark.parametrize(
    ("source", "expected", "side", "mean", "std"),
    [
        ("stl_in", "stl10_test_out", 64, (0.43, 0.42, 0.39), (0.27, 0.26, 0.27)),
        ("in_in", "in128_test_out", 128, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_test_transform_equals_the_reference(shared_dir, source, expected, side, mean, std):
    with np.load(shared_dir / "amdim/golden/augment.npz") as golden:
        pixels = resize_and_crop(Image.fromarray(golden[source]), Preprocess.for_image_size(side))
        normalised = ((pixels / 255.0 - mean) / std).transpose(2, 0, 1)
        np.testing.assert_allclose(normalised, golden[expected], atol=1e-5)


def test_awkward_files_decode_or_fail_as_measured(shared_dir):
    wrong = []
    with zipfile.ZipFile(shared_dir / "data/awkward_public.zip") as pack:
        rows = list(csv.DictReader(io.TextIOWrapper(pack.open("manifest.csv"), "utf-8")))
        for row in rows:
            outcome = _outcome(pack.read(row["file"]), row)
            if row["format"] not in (*FORMATS, "MPO"):
                expected = {"unsupported_media_type"}
            else:
                refused = {"image_undecodable", "image_truncated", "too_many_pixels"}
                expected = {
                    "decode": {"decoded"},
                    "reject": refused | {"unsupported_media_type"},
                    "either": refused | {"decoded"},
                }[row["expect"]]
            if outcome not in expected:
                wrong.append((row["file"], row["expect"], outcome))
    assert wrong == []
    assert len(rows) == 314


def _outcome(data, row):
    try:
        decoded = decode_image(data, PRE, ONE_PIXEL)
    except ImageError as error:
        return error.code
    assert decoded.pixels.shape == (64, 64, 3)
    assert decoded.pixels.flags.c_contiguous
    if row["expect"] == "decode" and row["file"] not in TURNED_TWICE:
        upright = (int(row["upright_width"]), int(row["upright_height"]))
        if (decoded.width, decoded.height) != upright:
            return f"size {decoded.width}x{decoded.height}, not {upright}"
    return "decoded"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_comes_upright(format, orientation):
    upright = photo(96, 80)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    decoded = load_rgb(encode(stored, format, exif=exif, **options))
    assert decoded.size == (96, 80)
    error = np.abs(np.asarray(decoded, float) - np.asarray(upright, float)).mean()
    assert error < 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_what_is_transparent_becomes_white(mode):
    image = Image.new("RGBA", (40, 30), (200, 10, 10, 0))
    image.paste((10, 20, 30, 255), (0, 0, 20, 30))
    if mode == "P":
        data = encode(image.quantize(8), "PNG")
    elif mode == "PA":
        data = encode(image, "WEBP", lossless=True)
    else:
        data = encode(image.convert(mode), "PNG")
    rgb = np.asarray(load_rgb(data))
    assert (rgb[:, 21:] == 255).all()
    assert (rgb[:, :19] < 40).all()


def test_half_transparent_is_blended_with_white():
    data = encode(Image.new("RGBA", (8, 8), (0, 100, 200, 128)))
    assert abs(np.asarray(load_rgb(data))[0, 0].astype(int) - (127, 177, 227)).max() <= 1


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(4, axis=0)
    for format in ("PNG", "TIFF"):
        rgb = np.asarray(load_rgb(encode(Image.fromarray(grey), format)))
        np.testing.assert_allclose(rgb[..., 0], grey / 257.0, atol=0.51)


@pytest.mark.parametrize(
    ("samples", "white"),
    [
        (np.array([[0.0, 0.25, 1.0]], np.float32), 1.0),
        (np.array([[0.0, 100.0, 255.0]], np.float32), 255.0),
        (np.array([[0, 100, 255]], np.int32), 255.0),
        (np.array([[0, 1000, 65535]], np.int32), 65535.0),
        (np.array([[-5, 0, 2**31 - 1]], np.int32), 2.0**31 - 1),
    ],
)
def test_deep_grey_takes_the_smallest_full_scale_that_holds_it(samples, white):
    samples = samples.repeat(3, axis=0)
    rgb = np.asarray(load_rgb(encode(Image.fromarray(samples), "TIFF")))
    np.testing.assert_allclose(rgb[..., 0], samples.clip(0) * (255 / white), atol=0.51)


def test_float_samples_that_are_not_finite_are_black():
    samples = np.array([[0.5, np.nan], [np.inf, 1.0]], np.float32)
    rgb = np.asarray(load_rgb(encode(Image.fromarray(samples), "TIFF")))
    assert rgb[..., 0].tolist() == [[128, 0], [0, 255]]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_modes_become_rgb(mode):
    image = photo(64, 48, mode)
    format = "TIFF" if mode == "CMYK" else "PNG"
    assert pixels_equal(load_rgb(encode(image, format)), image.convert("RGB"))


def test_adobe_cmyk_jpeg_is_not_inverted():
    original = Image.new("RGB", (64, 64), (250, 120, 20))
    rgb = np.asarray(load_rgb(encode(original.convert("CMYK"), "JPEG", quality=95)))
    assert abs(rgb.mean((0, 1)) - (250, 120, 20)).max() < 6


def test_profile_other_than_srgb_is_applied_and_srgb_is_not(shared_dir):
    from PIL import ImageCms

    image = photo(64, 64)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert pixels_equal(load_rgb(encode(image, icc_profile=srgb)), image)
    with zipfile.ZipFile(shared_dir / "data/awkward_public.zip") as pack:
        xyb = pack.read("files/vips__sample-xyb.jpg")  # its bare samples are far from RGB
        plain = load_rgb(pack.read("files/vips__sample.jpg"))
    seen = np.asarray(load_rgb(xyb).resize((8, 12)), float)
    assert abs(seen - np.asarray(plain.resize((8, 12)), float)).mean() < 12


@pytest.mark.parametrize("profile", [b"no profile", b"\x00" * 200])
def test_broken_profile_is_ignored(profile):
    image = photo(32, 32)
    assert pixels_equal(load_rgb(encode(image, icc_profile=profile)), image)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "MPO", "WEBP", "PNG"])
def test_only_the_first_frame_counts(format):
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    data = encode(first, format, save_all=True, append_images=[second])
    red = np.asarray(load_rgb(data), int).mean((0, 1))
    assert red[0] > 240
    assert red[2] < 20


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_half_a_file_is_truncated(format):
    data = encode(photo(), format)
    assert code_of(data[: len(data) // 2]) == "image_truncated"


def test_what_is_no_accepted_image_is_unsupported():
    assert code_of(b"hello, world") == "unsupported_media_type"
    assert code_of(b"") == "unsupported_media_type"
    assert code_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "unsupported_media_type"
    assert code_of(encode(photo(), "PPM")) == "unsupported_media_type"


def test_noise_behind_a_signature_is_undecodable():
    assert code_of(b"\xff\xd8\xff" + b"\x07" * 50 + b"\xff\xd9") == "image_undecodable"


def test_limits_are_checked_from_the_header():
    # A header of 60000 x 60000 with no pixels behind it: decoding could only fail otherwise.
    png = encode(Image.new("1", (60000, 8)))
    assert code_of(png, ImageLimits(max_pixels=60000 * 8 - 1)) == "too_many_pixels"
    bomb = bytearray(png[:33])
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    assert code_of(bytes(bomb) + b"\0\0\0\0IDAT") == "too_many_pixels"
    assert code_of(encode(Image.new("L", (1, 1))), ImageLimits()) == "image_too_small"
    assert code_of(encode(Image.new("L", (50, 9))), ImageLimits(min_side=10)) == "image_too_small"


def test_bomb_beyond_pillows_own_limit_has_the_same_code():
    gif = bytearray(encode(Image.new("P", (4, 4)), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    assert code_of(bytes(gif)) == "too_many_pixels"


def test_large_jpeg_is_reduced_only_while_twice_the_size_remains():
    for short, expected_close in ((139, False), (140, False), (280, True), (1200, True)):
        image = photo(short * 3 // 2, short)
        data = encode(image, "JPEG", quality=95, subsampling=0)
        decoded = decode_image(data, PRE)
        full = resize_and_crop(load_rgb(data), PRE)
        difference = np.abs(decoded.pixels.astype(int) - full).max()
        assert (decoded.width, decoded.height) == image.size
        assert difference == 0 if not expected_close else difference <= 12


@pytest.mark.parametrize("size", [(2, 30000), (30000, 2), (3, 40)])
def test_thin_pictures_cost_no_more_than_others(size):
    pixels = decode_image(encode(photo(*size)), PRE).pixels
    assert pixels.shape == (64, 64, 3)
    assert pixels.std() > 0


def test_memoryview_is_accepted():
    data = encode(photo())
    assert np.array_equal(
        decode_image(memoryview(data), PRE).pixels, decode_image(data, PRE).pixels
    )


def test_pillow_warnings_do_not_leak_from_threads(shared_dir):
    with zipfile.ZipFile(shared_dir / "data/awkward_public.zip") as pack:
        noisy = [pack.read(f"files/pil__{name}") for name in ("hopper_bad_exif.jpg", "i_trns.png")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        threads = [
            threading.Thread(target=lambda: [decode_image(d, PRE) for d in noisy * 10])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before
        warnings.warn("ours", UserWarning, stacklevel=1)
    assert [str(w.message) for w in caught] == ["ours"]


def test_memory_of_a_huge_picture_is_bounded():
    # 24 million transparent palette pixels: RGB (4 bytes a pixel in Pillow) and little more.
    program = """
import io, resource, numpy as np
from PIL import Image
from amdim_clients.images import Preprocess, decode_image
image = Image.new("P", (6000, 4000)); image.putpalette([0, 0, 0, 255, 0, 0])
buffer = io.BytesIO(); image.save(buffer, "PNG", transparency=0); del image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode_image(buffer.getvalue(), Preprocess.for_image_size(64))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 200


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_files_decode_or_are_refused_and_nothing_else(format):
    rng = np.random.default_rng(11)
    data = np.frombuffer(encode(photo(60, 40), format), np.uint8)
    for _ in range(60):
        damaged = data.copy()
        damaged[rng.integers(len(data), size=3)] = rng.integers(256, size=3)
        end = len(data) if rng.random() < 0.7 else rng.integers(1, len(data))
        with contextlib.suppress(ImageError):
            assert decode_image(damaged[:end].tobytes(), PRE).pixels.shape == (64, 64, 3)
