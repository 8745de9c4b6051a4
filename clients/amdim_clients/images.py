"""The one definition of how a picture's bytes become an encoder's pixels.

Serving, clients, training and export all decode through here, so that one picture has one vector.
Knows no model, no mean or deviation (those are in the graph), and never leaves NumPy and Pillow.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile

from amdim_clients.colors import to_rgb
from amdim_clients.errors import ContractError, ImageError
from amdim_clients.sniff import FORMATS, claimed_avif_pixels, is_cut_short, sniff_format
from amdim_clients.warnings_gate import without_pillow_warnings

ResultT = TypeVar("ResultT")

PREPROCESS_VERSION: Final = 1
# The method's own test transforms: 32 is not resized further, 64 and 128 keep a small margin.
RESIZE_FOR: Final = {32: 32, 64: 70, 128: 146}
# Beyond this aspect ratio only the crop's own strip is resampled, or a thin picture would explode.
_MAX_RESIZED_ASPECT: Final = 8
DCT_MARGIN: Final = 2  # times the size that is needed

# All that decides a pixel, in words; its digest changes with any of them.
_DEFINITION: Final = {
    "version": PREPROCESS_VERSION,
    "frame": "first",
    "orientation": "exif upright",
    "jpeg_dct_scaling": f"while short side >= {DCT_MARGIN} * resize",
    "deep_grey": "full scale to 255, rounded",
    "alpha": "over white",
    "icc": "to sRGB, perceptual",
    "channels": "RGB uint8",
    "resize": "short side, Pillow bicubic with antialias, long side floor",
    "resize_aspect_limit": _MAX_RESIZED_ASPECT,
    "crop": "centre, half to even",
}

_TRANSPOSE: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Preprocess:
    """The sizes of one encoder's preprocessing; everything else is fixed by the version."""

    image_size: int  # S: side of the square the encoder takes, pixels
    resize: int  # length of the short side before the crop, pixels

    def __post_init__(self) -> None:
        """Refuse sizes that leave nothing to crop."""
        if not 1 <= self.image_size <= self.resize:
            raise ContractError(
                f"resize must be at least image_size, got {self.resize} for {self.image_size}"
            )

    @classmethod
    def for_image_size(cls, image_size: int) -> Preprocess:
        """The method's own test transform for an encoder of side S.

        Raises:
            ContractError: `image_size` is not 32, 64 or 128.
        """
        if image_size not in RESIZE_FOR:
            raise ContractError(f"image_size must be 32, 64 or 128, got {image_size}")
        return cls(image_size, RESIZE_FOR[image_size])

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the whole definition's canonical JSON."""
        definition: dict[str, Any] = {
            **_DEFINITION,
            "image_size": self.image_size,
            "resize_to": self.resize,
        }
        text = json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True)
class ImageLimits:
    """What a picture's header may say before anything is decoded."""

    max_pixels: int = 50_000_000  # width * height; 50 MP hold any phone's photo
    min_side: int = 2  # pixels; one pixel is no picture


@dataclass(frozen=True)
class DecodedImage:
    """An encoder's pixels and the upright size of the picture they came from."""

    pixels: npt.NDArray[np.uint8]  # (S, S, 3) RGB, C order
    width: int
    height: int


_DEFAULT_LIMITS: Final = ImageLimits()


def decode_image(
    data: bytes | memoryview, preprocess: Preprocess, limits: ImageLimits = _DEFAULT_LIMITS
) -> DecodedImage:
    """A picture's bytes as the encoder's pixels.

    Args:
        data: A whole file in an accepted format.
        preprocess: The encoder's sizes.
        limits: Checked from the header, before decoding.

    Raises:
        ImageError: The bytes are not a usable picture; `.code` says why.
    """
    rgb, width, height = load_reduced(data, limits, needed_side=DCT_MARGIN * preprocess.resize)
    return DecodedImage(resize_and_crop(rgb, preprocess), width, height)


def load_rgb(data: bytes | memoryview, limits: ImageLimits = _DEFAULT_LIMITS) -> Image.Image:
    """The upright picture in RGB at its full resolution.

    Raises:
        ImageError: The bytes are not a usable picture; `.code` says why.
    """
    return load_reduced(data, limits, needed_side=None)[0]


def resize_and_crop(image: Image.Image, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """An upright RGB image resized by its short side and cropped to its centre.

    Args:
        image: Mode RGB, any size.
        preprocess: The encoder's sizes.

    Returns:
        (S, S, 3) uint8, C order.

    Source: SPEC section 5, test transforms; rounding as torchvision's Resize and CenterCrop.
    """
    side, short = preprocess.image_size, preprocess.resize
    width, height = image.size
    new_width, new_height, left, top = crop_in_resized(width, height, preprocess)
    if max(new_width, new_height) > _MAX_RESIZED_ASPECT * short:
        scale_x, scale_y = width / new_width, height / new_height
        box = (left * scale_x, top * scale_y, (left + side) * scale_x, (top + side) * scale_y)
        crop = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    else:
        if (new_width, new_height) != (width, height):
            image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
        crop = image.crop((left, top, left + side, top + side))
    return np.array(crop, dtype=np.uint8, order="C")


def crop_in_resized(width: int, height: int, preprocess: Preprocess) -> tuple[int, int, int, int]:
    """Where the centre crop lies in a resized picture, for whoever draws boxes.

    Args:
        width: Of the upright picture, pixels.
        height: Of the upright picture, pixels.
        preprocess: The encoder's sizes.

    Returns:
        Width and height after the resize, left and top of the S x S crop in it, all pixels.
    """
    short = preprocess.resize
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    left = round((new_width - preprocess.image_size) / 2.0)
    top = round((new_height - preprocess.image_size) / 2.0)
    return new_width, new_height, left, top


def load_reduced(
    data: bytes | memoryview, limits: ImageLimits = _DEFAULT_LIMITS, *, needed_side: int | None
) -> tuple[Image.Image, int, int]:
    """The upright RGB image, reduced where a JPEG allows, and its full upright size.

    Args:
        data: A whole file in an accepted format.
        limits: Checked from the header, before decoding.
        needed_side: The short side that a reduced image must still have; None: nothing is reduced.

    Returns:
        The image, and the picture's own width and height.

    Raises:
        ImageError: The bytes are not a usable picture; `.code` says why.
    """
    return _with_open(data, limits, lambda image: _load_open(image, limits, needed_side))


def header_size(data: bytes | memoryview, limits: ImageLimits = _DEFAULT_LIMITS) -> tuple[int, int]:
    """Width and height as the header says them, which may lie on their side; decodes nothing.

    Raises:
        ImageError: The header is none of a picture, or says that it is too large or too small.
    """
    return _with_open(data, limits, lambda image: _checked_size(image, limits))


def _with_open(
    data: bytes | memoryview, limits: ImageLimits, use: Callable[[ImageFile.ImageFile], ResultT]
) -> ResultT:
    """What `use` makes of the opened picture; every failure is one refusal."""
    format_name = sniff_format(data)
    with without_pillow_warnings():
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return use(image)
        except (ImageError, ImportError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError("too_many_pixels") from error
        except Exception as error:  # plugins raise anything on broken bytes; each is one refusal
            if format_name is None:
                raise ImageError("unsupported_media_type") from error
            if format_name == "AVIF" and claimed_avif_pixels(data) > limits.max_pixels:
                raise ImageError("too_many_pixels") from error
            cut = is_cut_short(data, format_name) or "truncated" in str(error).lower()
            raise ImageError("image_truncated" if cut else "image_undecodable") from error


def _load_open(
    image: ImageFile.ImageFile, limits: ImageLimits, needed_side: int | None
) -> tuple[Image.Image, int, int]:
    header_width, header_height = _checked_size(image, limits)
    if needed_side is not None:
        image.draft(None, (needed_side, needed_side))
    is_reduced = image.size != (header_width, header_height)
    image.load()
    # After loading: PNG may carry EXIF behind its pixels, and Pillow turns TIFF upright itself.
    orientation = _orientation(image)
    rgb = to_rgb(image)
    if orientation in _TRANSPOSE:
        rgb = rgb.transpose(_TRANSPOSE[orientation])
    if not is_reduced:
        return rgb, *rgb.size
    if orientation >= 5:
        return rgb, header_height, header_width
    return rgb, header_width, header_height


def _checked_size(image: ImageFile.ImageFile, limits: ImageLimits) -> tuple[int, int]:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError("too_many_pixels")
    if min(width, height) < limits.min_side:
        raise ImageError("image_too_small")
    return width, height


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block must not lose the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
