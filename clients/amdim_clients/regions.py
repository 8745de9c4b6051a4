"""Regions of a query, cut out the way the windows of an index were cut out of their pictures.

Knows no encoder and no storage.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

from PIL import Image

from amdim_clients.errors import RegionError
from amdim_clients.fields import Box
from amdim_clients.images import ImageLimits, load_rgb

# A region is found better with a little of what is around it, and better still by the mean of two
# vectors, with a little and with more: benchmarks/search.py.
CONTEXT: Final = 1.2
CONTEXTS: Final = (CONTEXT, 1.7)
_LEAST_SIDE: Final = 4  # pixels
_DEFAULT_LIMITS: Final = ImageLimits()


def parse_region(text: str) -> Box:
    """A region as the command line takes it, `x0,y0,x1,y1` in 0..1 of the upright picture.

    Raises:
        RegionError: It is no rectangle inside the picture.
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise RegionError(f"{text!r} is no region like 0.1,0.2,0.5,0.9") from error
    check_region((x0, y0, x1, y1))
    return x0, y0, x1, y1


def check_region(region: Box) -> None:
    """Refuse what is no part of a picture.

    Raises:
        RegionError: It is no rectangle inside the picture.
    """
    x0, y0, x1, y1 = region
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise RegionError(
            "a region is x0,y0,x1,y1 in 0..1 of the upright picture, with x0 < x1 and y0 < y1: "
            f"{x0:g},{y0:g},{x1:g},{y1:g} is not inside it"
        )


def square_around(region: Box, width: int, height: int, *, context: float = CONTEXT) -> Box:
    """The square that windows would be: about the region, as far as the picture goes.

    Args:
        region: In 0..1.
        width: Of the upright picture, pixels.
        height: Of the upright picture, pixels.
        context: The square's side over the region's longer one.

    Returns:
        The square in 0..1.
    """
    x0, y0, x1, y1 = region
    side = max((x1 - x0) * width, (y1 - y0) * height) * context
    side = min(side, width, height)
    left = min(max(0.0, (x0 + x1) / 2 * width - side / 2), width - side)
    top = min(max(0.0, (y0 + y1) / 2 * height - side / 2), height - side)
    return left / width, top / height, (left + side) / width, (top + side) / height


def cut_region(
    data: bytes | memoryview, region: Box, limits: ImageLimits = _DEFAULT_LIMITS
) -> bytes:
    """The square about a region of a picture, as a file without loss.

    Raises:
        RegionError: It is no rectangle inside the picture, or too small to show anything.
        ImageError: The bytes are not a usable picture.
    """
    (square,) = cut_squares(data, region, (CONTEXT,), limits)
    return square


def cut_squares(
    data: bytes | memoryview,
    region: Box,
    contexts: Sequence[float] = CONTEXTS,
    limits: ImageLimits = _DEFAULT_LIMITS,
) -> list[bytes]:
    """Squares about a region of a picture, as files without loss; equal ones once.

    Args:
        data: A whole file.
        region: In 0..1 of the upright picture.
        contexts: Each square's side over the region's longer one.
        limits: Of the picture.

    Raises:
        RegionError: It is no rectangle inside the picture, or too small to show anything.
        ImageError: The bytes are not a usable picture.
    """
    check_region(region)
    image = load_rgb(data, limits)
    width, height = image.size
    places: dict[tuple[int, int, int], None] = {}
    for context in contexts:
        x0, y0, x1, _ = square_around(region, width, height, context=context)
        places[round(x0 * width), round(y0 * height), round((x1 - x0) * width)] = None
    return [_cut(image, *place) for place in places]


def _cut(image: Image.Image, left: int, top: int, side: int) -> bytes:
    if side < _LEAST_SIDE:
        raise RegionError(f"the region is only {side} pixels wide: draw a larger one")
    buffer = io.BytesIO()
    cut: Image.Image = image.crop((left, top, left + side, top + side))
    cut.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
