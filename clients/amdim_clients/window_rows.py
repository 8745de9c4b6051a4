"""The windows of pictures as an index holds them: thinned, as half-precision vectors with boxes.

Knows no model and no storage. Boxes are x0, y0, x1, y1 in 0..1 of the upright picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from amdim_clients.errors import IndexStoreError, ScaleError
from amdim_clients.windows import WindowGrid, check_scales

# The output of an index of windows: a whole picture is told by the mean of its windows at these
# scales, each counting alike. Chosen by measurement: scale 1 keeps what is in the middle, 1.5 adds
# what a centre crop leaves out, and beyond it details outweigh the picture.
WINDOW_MEAN: Final = "window_mean"
_MEAN_UP_TO: Final = 1.5
# Chosen by benchmarks/search.py on coco128.
INDEX_SCALES: Final = (1.0, 1.5, 2.0, 3.0)
INDEX_STRIDE: Final = 4
NO_WINDOWS: Final = (
    "the index holds no windows, which regions need: make one with amdim index --windows"
)
_BOX_BYTES: Final = 20  # scale and box
_EIGHTHS: Final = 8  # of a window's side: the stride at which the model gives windows
_PLAN_FORMAT: Final = 1


@dataclass(frozen=True)
class PictureWindows:
    """Some windows of one picture."""

    scales: npt.NDArray[np.float32]  # (n,)
    boxes: npt.NDArray[np.float32]  # (n, 4)
    vectors: npt.NDArray[np.float16]  # (n, E) L2-normalised
    # (E,) of length 1, the whole picture; only where they come from a model, before any is left out
    whole: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.scales)

    @property
    def coarse(self) -> npt.NDArray[np.float16]:
        """(m, E) the vectors of those that tell of the whole picture."""
        coarse = self.scales <= max(self.scales.min(), _MEAN_UP_TO)
        vectors: npt.NDArray[np.float16] = self.vectors[coarse]
        return vectors


@dataclass(frozen=True)
class WindowPlan:
    """Which windows of a picture are kept."""

    scales: tuple[float, ...] = INDEX_SCALES
    stride: int = INDEX_STRIDE  # eighths of a window's side

    def __post_init__(self) -> None:
        """Refuse what no model gives.

        Raises:
            ScaleError: The scales or the stride are out of range.
        """
        object.__setattr__(self, "scales", check_scales(self.scales))
        if not 1 <= self.stride <= _EIGHTHS:
            raise ScaleError(f"a stride is 1 to {_EIGHTHS} eighths of a window, not {self.stride}")

    def keep(self, grids: Sequence[tuple[WindowGrid, npt.NDArray[np.float32]]]) -> PictureWindows:
        """Thin the windows of one picture; the outermost ones always stay.

        Args:
            grids: For each scale its grid and (h, w, E) vectors.
        """
        scales, boxes, vectors = [], [], []
        for grid, found in grids:
            rows, columns = self._kept(grid.rows), self._kept(grid.columns)
            kept = np.ix_(rows, columns)
            scales.append(np.full(len(rows) * len(columns), grid.scale, np.float32))
            boxes.append(grid.boxes()[kept].reshape(-1, 4))
            vectors.append(_unit(found[kept].reshape(-1, found.shape[-1])))
        return PictureWindows(
            np.concatenate(scales), np.concatenate(boxes), np.concatenate(vectors), _whole(grids)
        )

    def window_bytes(self, dim: int) -> int:
        """What one window of E values takes in an index, keys and facts aside."""
        return 2 * dim + _BOX_BYTES

    def to_json(self) -> str:
        """The plan as it is kept in an index."""
        return json.dumps({"format": _PLAN_FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> WindowPlan:
        """The plan an index was made with.

        Raises:
            IndexStoreError: The text is none, or of a later format.
        """
        try:
            document = json.loads(text)
            if document.pop("format") != _PLAN_FORMAT:
                raise IndexStoreError("the index was made by a later version of this program")
            return cls(tuple(document["scales"]), int(document["stride"]))
        except (AttributeError, KeyError, TypeError, ValueError, ScaleError) as error:
            raise IndexStoreError("the index does not say which windows it holds") from error

    def _kept(self, count: int) -> npt.NDArray[np.int64]:
        steps = math.ceil((count - 1) / self.stride)
        return np.unique(np.round(np.linspace(0, count - 1, steps + 1)).astype(np.int64))


def choose_plan(
    windows: bool | None, scales: str | None, stride: int | None, stored: WindowPlan | None
) -> WindowPlan | None:
    """The plan that options ask for, else what the index has.

    Args:
        windows: Asked for, refused, or neither.
        scales: With commas between.
        stride: Eighths of a window.
        stored: What the index holds.

    Raises:
        ScaleError: Scales or stride are out of range, or refused windows were told of.
    """
    if windows is False or (windows is None and stored is None):
        if scales is not None or stride is not None:
            raise ScaleError("--scales and --stride are of windows: add --windows")
        return None
    base = stored or WindowPlan()
    try:
        asked = tuple(float(scale) for scale in scales.split(",")) if scales else base.scales
    except ValueError as error:
        raise ScaleError(f"{scales!r} are no scales like 1,1.5,2") from error
    return WindowPlan(asked, base.stride if stride is None else stride)


def _whole(
    grids: Sequence[tuple[WindowGrid, npt.NDArray[np.float32]]],
) -> npt.NDArray[np.float32]:
    """(E,) the mean over every window of the coarse scales, or of the coarsest there is."""
    coarsest = min(grid.scale for grid, _ in grids)
    means = []
    for grid, vectors in grids:
        if grid.scale <= max(coarsest, _MEAN_UP_TO):
            flat = vectors.reshape(-1, vectors.shape[-1])
            mean = (flat / np.linalg.norm(flat, axis=1, keepdims=True)).mean(axis=0)
            means.append(mean / np.linalg.norm(mean))
    total = np.sum(means, axis=0)
    unit: npt.NDArray[np.float32] = (total / np.linalg.norm(total)).astype(np.float32)
    return unit


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    half: npt.NDArray[np.float16] = unit.astype(np.float16)
    return half
