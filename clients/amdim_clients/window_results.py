"""What a call to `embed_windows` returns. Knows no transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from amdim_clients.errors import ImageError, ResponseError, SourceError
from amdim_clients.inputs import ImageFailure
from amdim_clients.windows import WindowGrid

# One picture: for each scale its grid, and (h, w, E) vectors.
PictureGrids: TypeAlias = tuple[tuple[WindowGrid, npt.NDArray[np.float32]], ...]

_SIDE = 8  # of a window, in strides
_ROUNDING = 1e-3


@dataclass(frozen=True)
class WindowResult:
    """Windows of one call, by the position of each image in what was passed."""

    windows: Mapping[int, PictureGrids]
    errors: Mapping[int, ImageFailure]  # position -> why it has none
    served_by: Any  # `ServedBy`; None where not one image reached the server

    def raise_for_errors(self) -> WindowResult:
        """This result, for callers who need every image.

        Raises:
            ImageError: The first image that is not a usable picture.
            SourceError: The first image that failed for another reason.
        """
        for position, failure in sorted(self.errors.items()):
            try:
                error: ImageError | SourceError = ImageError(failure.code)
            except KeyError:
                error = SourceError(f"image {position}: {failure.message}")
            raise error
        return self


def grid_of(
    scale: float, vectors: npt.NDArray[np.float32], first_box: Sequence[float]
) -> WindowGrid:
    """The grid that so many windows make up, in strides instead of pixels.

    Args:
        scale: Of the grid.
        vectors: (h, w, E).
        first_box: What the server says of the first window.

    Raises:
        ResponseError: Its box is not that of the first window of such a grid.
    """
    rows, columns, _ = vectors.shape
    grid = WindowGrid(scale, _SIDE, rows + _SIDE - 1, columns + _SIDE - 1)
    if not np.allclose(grid.first_box, first_box, atol=_ROUNDING):
        raise ResponseError("the boxes of the windows are not those that their number makes up")
    return grid
