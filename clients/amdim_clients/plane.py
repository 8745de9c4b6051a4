"""A collection drawn on a plane: alike pictures beside each other.

Principal components in NumPy, then an equal share of the plane for every picture, so that crowds
do not hide one another. Knows no index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from amdim_clients.neighbors import FloatArray
from amdim_clients.sheet import Tile, draw_tile

_SIDE: Final = 1600  # pixels
_PAPER: Final = "#ffffff"


def project(vectors: FloatArray) -> FloatArray:
    """The two directions in which the vectors differ most.

    Args:
        vectors: (N, E), N at least 1.

    Returns:
        (N, 2) float32, the sign of each direction fixed by its largest part.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    # The covariance is E x E whatever the number of pictures.
    _, directions = np.linalg.eigh(centred.T @ centred)
    chosen = directions[:, [-1, -2]]
    largest = np.abs(chosen).argmax(axis=0)
    chosen = chosen * np.sign(chosen[largest, [0, 1]])
    projected: FloatArray = (centred @ chosen).astype(np.float32)
    return projected


def spread(points: FloatArray) -> npt.NDArray[np.int64]:
    """A place on a square grid for each point, neighbours staying near: columns, then rows.

    Args:
        points: (N, 2).

    Returns:
        (N, 2) int64 column and row, all different, in a grid of ceil(sqrt(N)) a side.
    """
    count = len(points)
    side = int(np.ceil(np.sqrt(count)))
    places = np.zeros((count, 2), np.int64)
    by_column = np.argsort(points[:, 0], kind="stable")
    for column in range(side):
        inside = by_column[column * side : (column + 1) * side]
        inside = inside[np.argsort(points[inside, 1], kind="stable")]
        places[inside, 0] = column
        places[inside, 1] = np.arange(len(inside))
    return places


def draw_plane(
    keys: Sequence[str], places: npt.NDArray[np.int64], pictures: Mapping[str, bytes]
) -> Image.Image:
    """Every picture at its place.

    Args:
        keys: One for each place.
        places: As `spread` gives them.
        pictures: Bytes of the files; those that are gone stay blank.
    """
    side = int(places.max()) + 1
    tile = max(8, _SIDE // side)
    plane = Image.new("RGB", (side * tile, side * tile), _PAPER)
    for key, (column, row) in zip(keys, places, strict=True):
        picture = draw_tile(Tile(("", ""), pictures.get(key)), tile)
        plane.paste(picture, (int(column) * tile, int(row) * tile))
    return plane
