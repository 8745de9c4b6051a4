"""Every S x S window of a whole picture: which pixels enter the windows model, and each one's box.

An encoder that pads nothing gives, in one pass over a larger picture, the vectors of all its
windows at a stride of S/8. Knows no model and no transport; pixels follow `images`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from amdim_clients.errors import ImageError, ScaleError
from amdim_clients.fields import Box
from amdim_clients.images import DCT_MARGIN, ImageLimits, Preprocess, load_reduced

# Scale 1: the short side is S. Above 4 a window is a sixteenth of a picture's short side or less.
MIN_SCALE: Final = 1.0
MAX_SCALE: Final = 4.0
MAX_SCALES: Final = 4
DEFAULT_SCALES: Final = (1.0, 2.0)
# All scales of one picture together: 1,2 of a panorama of 10 : 1 needs 1,400.
MAX_WINDOWS: Final = 2048
_STRIDES: Final = 8  # in one window's side

_DEFAULT_LIMITS: Final = ImageLimits()


@dataclass(frozen=True)
class WindowGrid:
    """The windows of one picture at one scale."""

    scale: float
    image_size: int  # S: side of a window, pixels
    height: int  # of what enters the model, pixels
    width: int

    @property
    def stride(self) -> int:
        """Pixels between neighbouring windows."""
        return self.image_size // _STRIDES

    @property
    def rows(self) -> int:
        """h: windows from top to bottom."""
        return (self.height - self.image_size) // self.stride + 1

    @property
    def columns(self) -> int:
        """w: windows from left to right."""
        return (self.width - self.image_size) // self.stride + 1

    @property
    def first_box(self) -> Box:
        """The window at the top left, in 0..1 of the upright picture."""
        return self.box(0, 0)

    @property
    def step(self) -> tuple[float, float]:
        """How far the next window to the right, and the next below, are away, in 0..1."""
        return self.stride / self.width, self.stride / self.height

    def box(self, i: int, j: int) -> Box:
        """The window in row i and column j, as x0, y0, x1, y1 in 0..1 of the upright picture."""
        left, top, side = j * self.stride, i * self.stride, self.image_size
        return (
            left / self.width,
            top / self.height,
            (left + side) / self.width,
            (top + side) / self.height,
        )

    def boxes(self) -> npt.NDArray[np.float32]:
        """Every window's box, (h, w, 4) float32."""
        boxes = np.empty((self.rows, self.columns, 4), np.float32)
        left = np.arange(self.columns) * self.stride
        top = np.arange(self.rows) * self.stride
        boxes[..., 0] = left / self.width
        boxes[..., 1] = (top / self.height)[:, None]
        boxes[..., 2] = (left + self.image_size) / self.width
        boxes[..., 3] = ((top + self.image_size) / self.height)[:, None]
        return boxes


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """The scales as they are, once they are known to be good.

    Raises:
        ScaleError: There are none, too many, or one is out of range or named twice.
    """
    good = all(math.isfinite(scale) and MIN_SCALE <= scale <= MAX_SCALE for scale in scales)
    if not good or not 1 <= len(scales) <= MAX_SCALES or len(set(scales)) != len(scales):
        raise ScaleError
    return tuple(float(scale) for scale in scales)


def plan_grid(
    width: int, height: int, scale: float, image_size: int, *, max_windows: int = MAX_WINDOWS
) -> WindowGrid:
    """The windows of a picture at one scale: its short side S * scale, the long in proportion.

    Args:
        width: Of the upright picture, pixels.
        height: Of the upright picture, pixels.
        scale: From 1 to 4.
        image_size: S, pixels.
        max_windows: That the grid may have.

    Raises:
        ScaleError: The scale is out of range.
        ImageError: too_many_windows.
    """
    check_scales((scale,))
    stride = image_size // _STRIDES
    factor = image_size * scale / min(width, height)

    def rounded(side: int) -> int:
        return max(image_size, math.floor(side * factor / stride + 0.5) * stride)

    grid = WindowGrid(float(scale), image_size, rounded(height), rounded(width))
    if grid.rows * grid.columns > max_windows:
        raise ImageError("too_many_windows")
    return grid


def plan_grids(
    width: int,
    height: int,
    scales: Sequence[float],
    image_size: int,
    *,
    max_windows: int = MAX_WINDOWS,
) -> list[WindowGrid]:
    """The windows of a picture at several scales, which share the limit.

    Raises:
        ScaleError: The scales are not good.
        ImageError: too_many_windows.
    """
    grids: list[WindowGrid] = []
    for scale in check_scales(scales):
        grid = plan_grid(width, height, scale, image_size, max_windows=max_windows)
        max_windows -= grid.rows * grid.columns
        grids.append(grid)
    return grids


def decode_windows(
    data: bytes | memoryview,
    preprocess: Preprocess,
    scales: Sequence[float] = DEFAULT_SCALES,
    *,
    limits: ImageLimits = _DEFAULT_LIMITS,
    max_windows: int = MAX_WINDOWS,
) -> list[tuple[WindowGrid, npt.NDArray[np.uint8]]]:
    """A picture's bytes as the windows model's pixels, decoded once for all scales.

    Args:
        data: A whole file in an accepted format.
        preprocess: The encoder's sizes.
        scales: One to four, each from 1 to 4.
        limits: Checked from the header, before decoding.
        max_windows: Of all scales together.

    Returns:
        For each scale its grid, and (H, W, 3) uint8 RGB in C order.

    Raises:
        ScaleError: The scales are not good.
        ImageError: The bytes are not a usable picture, or have too many windows.
    """
    side = preprocess.image_size
    needed = math.ceil(DCT_MARGIN * side * max(check_scales(scales)))
    image, width, height = load_reduced(data, limits, needed_side=needed)
    grids = plan_grids(width, height, scales, side, max_windows=max_windows)
    return [(grid, resize_to_grid(image, grid)) for grid in grids]


def resize_to_grid(image: Image.Image, grid: WindowGrid) -> npt.NDArray[np.uint8]:
    """An upright RGB image at the size that its grid says, (H, W, 3) uint8 in C order."""
    if image.size != (grid.width, grid.height):
        image = image.resize((grid.width, grid.height), Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.uint8, order="C")
