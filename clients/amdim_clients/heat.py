"""Where in a picture its windows agree with a query, as something to lay over the picture.

Knows no index: boxes and cosines in, a small image out.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

_CELLS: Final = 48  # a side
_MOST_OPAQUE: Final = 0.6
_COOL, _WARM = np.array([255, 214, 0]), np.array([213, 0, 0])


def heat_cells(
    boxes: npt.NDArray[np.float32], cosines: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The mean cosine of the windows over each place, small windows counting for more.

    Args:
        boxes: (n, 4) in 0..1.
        cosines: (n,).

    Returns:
        (48, 48) float32 from 0 (least) to 1 (most).
    """
    total = np.zeros((_CELLS, _CELLS))
    weight = np.zeros((_CELLS, _CELLS))
    edges = np.round(boxes * _CELLS).astype(int)
    for (x0, y0, x1, y1), cosine in zip(edges, cosines, strict=True):
        inside = np.s_[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
        share = 1 / max(1, (x1 - x0) * (y1 - y0))
        total[inside] += cosine * share
        weight[inside] += share
    mean = np.divide(total, weight, out=np.full_like(total, total.min()), where=weight > 0)
    spread = float(mean.max() - mean.min())
    if spread == 0:
        return np.zeros((_CELLS, _CELLS), np.float32)
    levels: npt.NDArray[np.float32] = ((mean - mean.min()) / spread).astype(np.float32)
    return levels


def heat_overlay(cells: npt.NDArray[np.float32], size: tuple[int, int]) -> Image.Image:
    """The cells as an RGBA image of `size`, clear where they are low and red where high."""
    levels = cells[..., None]
    colors = _COOL + (_WARM - _COOL) * levels
    alpha = 255 * _MOST_OPAQUE * np.clip(levels - 0.35, 0, None) / 0.65
    pixels = np.concatenate([colors, alpha], axis=-1).round().astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
