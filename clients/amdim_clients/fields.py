"""Which part of a picture a local vector has seen.

A cell of the 5x5 or 7x7 grid knows its receptive field and nothing else; here that is a box in
0..1 of the upright picture, the resize and the centre crop taken into account. Knows no vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from amdim_clients.errors import ContractError, RegionError
from amdim_clients.images import Preprocess, crop_in_resized

# x0, y0, x1, y1 in 0..1 of the upright picture.
Box: TypeAlias = tuple[float, float, float, float]

# Encoder side -> grid side -> receptive field, stride and reflected padding, pixels.
# Source: SPEC section 1.3; at 128 px they are counted on the padded input.
_FIELDS: Final = {
    32: {7: (8, 4, 0), 5: (16, 4, 0)},
    64: {7: (16, 8, 0), 5: (32, 8, 0)},
    128: {7: (35, 16, 2), 5: (67, 16, 2)},
}


@dataclass(frozen=True)
class PictureFrame:
    """An upright picture's size, and the sizes it was brought to."""

    width: int
    height: int
    preprocess: Preprocess

    def crop_box(self) -> Box:
        """All that the encoder sees of the picture."""
        side = float(self.preprocess.image_size)
        return self._to_picture(0.0, 0.0, side, side)

    def cell_box(self, row: int, column: int, grid: int) -> Box:
        """The receptive field of one cell.

        Args:
            row: From the top, 0-based.
            column: From the left, 0-based.
            grid: 5 or 7.

        Raises:
            ContractError: There is no such cell, or no such encoder.
        """
        if not (0 <= row < grid and 0 <= column < grid):
            raise ContractError(f"a {grid}x{grid} grid has no cell ({row}, {column})")
        x0, x1 = self._span(column, grid)
        y0, y1 = self._span(row, grid)
        return self._to_picture(x0, y0, x1, y1)

    def cells_in(self, region: Box, grid: int) -> npt.NDArray[np.bool_]:
        """The cells whose centre lies in a region, at least the one nearest to its middle.

        Returns:
            (grid, grid) bool, rows first.

        Raises:
            RegionError: The region is no rectangle in 0..1, or lies outside the centre crop.
        """
        x0, y0, x1, y1 = self._to_crop(region)
        centres = np.array([sum(self._span(cell, grid)) / 2 for cell in range(grid)])
        rows = (centres >= y0) & (centres <= y1)
        columns = (centres >= x0) & (centres <= x1)
        rows[np.abs(centres - (y0 + y1) / 2).argmin()] = True
        columns[np.abs(centres - (x0 + x1) / 2).argmin()] = True
        inside: npt.NDArray[np.bool_] = rows[:, None] & columns[None, :]
        return inside

    def _span(self, cell: int, grid: int) -> tuple[float, float]:
        """First and last pixel edge of a cell's receptive field along one side of the crop."""
        side = self.preprocess.image_size
        try:
            field, stride, padding = _FIELDS[side][grid]
        except KeyError as error:
            raise ContractError(f"no {grid}x{grid} grid is known at {side} pixels") from error
        first = cell * stride - padding
        return float(max(0, first)), float(min(side, first + field))

    def _to_picture(self, x0: float, y0: float, x1: float, y1: float) -> Box:
        new_width, new_height, left, top = self._geometry()
        return (
            (left + x0) / new_width,
            (top + y0) / new_height,
            (left + x1) / new_width,
            (top + y1) / new_height,
        )

    def _to_crop(self, region: Box) -> Box:
        """A region in pixels of the crop, cut to it."""
        x0, y0, x1, y1 = region
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise RegionError("A region is [x0, y0, x1, y1] in 0..1 with x0 < x1 and y0 < y1.")
        side = self.preprocess.image_size
        new_width, new_height, left, top = self._geometry()
        crop = (
            max(0.0, x0 * new_width - left),
            max(0.0, y0 * new_height - top),
            min(float(side), x1 * new_width - left),
            min(float(side), y1 * new_height - top),
        )
        if crop[0] >= crop[2] or crop[1] >= crop[3]:
            raise RegionError("The region lies outside the centre crop, which is all that is seen.")
        return crop

    def _geometry(self) -> tuple[int, int, int, int]:
        return crop_in_resized(self.width, self.height, self.preprocess)
