"""Whether and where one picture, or a region of it, is found in another.

The trained score compares a global vector, or local ones, with local vectors of another picture;
all live in one space. NumPy only: knows neither engines nor transports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from amdim_clients.errors import ContractError
from amdim_clients.fields import Box, PictureFrame
from amdim_clients.windows import WindowGrid

FloatArray = npt.NDArray[np.float32]
ScoreKind = Literal["amdim", "cosine"]

# The bound the objective was trained with (tclip in the paper's code).
SCORE_CLIP: Final = 20.0


@dataclass(frozen=True)
class PictureFeatures:
    """One picture's vectors as the model gives them, not normalised."""

    default: FloatArray  # (E,) the model's default output
    global_: FloatArray  # (D,)
    local5: FloatArray  # (5, 5, D)
    local7: FloatArray  # (7, 7, D)
    frame: PictureFrame


@dataclass(frozen=True)
class Place:
    """Where a score is highest."""

    score: float
    cell: tuple[int, int]  # row, column
    box: Box  # what that cell has seen of the candidate
    map: FloatArray  # (7, 7) scores


@dataclass(frozen=True)
class Match:
    """One candidate against a query."""

    cosine: float  # of the default outputs
    whole: Place  # the query's global vector against the candidate's 7x7
    region: Place | None  # the region's local vectors against it


def amdim_score(
    a: npt.NDArray[Any], b: npt.NDArray[Any], *, clip: float = SCORE_CLIP
) -> FloatArray:
    """The trained score, clip * tanh(<a, b> / (clip * sqrt(D))), over the last axis.

    Args:
        a: (..., D), not normalised.
        b: (..., D), broadcast against `a`.
        clip: Bound of the score.

    Source: AMDIM (arXiv:1906.00910); DESIGN, what it is.
    """
    dim = a.shape[-1]
    if b.shape[-1] != dim:
        raise ContractError(f"vectors of {dim} and {b.shape[-1]} values have no score")
    product = np.einsum("...d,...d->...", a.astype(np.float64), b.astype(np.float64))
    score: FloatArray = (clip * np.tanh(product / (clip * np.sqrt(dim)))).astype(np.float32)
    return score


def cosine_score(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> FloatArray:
    """The cosine over the last axis, broadcast; 0 where a vector is zero."""
    product = np.einsum("...d,...d->...", a.astype(np.float64), b.astype(np.float64))
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    zero = np.zeros_like(product)
    cosine: FloatArray = np.divide(product, lengths, out=zero, where=lengths > 0).astype(np.float32)
    return cosine


def score_map(
    sources: npt.NDArray[Any], grid: npt.NDArray[Any], *, kind: ScoreKind = "amdim"
) -> FloatArray:
    """Mean score of some vectors against every cell of a grid.

    Args:
        sources: (M, D), M at least 1.
        grid: (h, w, D).
        kind: The trained score, or the cosine.

    Returns:
        (h, w) float32.
    """
    score = amdim_score if kind == "amdim" else cosine_score
    mean: FloatArray = score(sources[:, None, None, :], grid[None]).mean(axis=0)
    return mean


def match_pictures(
    query: PictureFeatures,
    candidate: PictureFeatures,
    *,
    region: Box | None = None,
    kind: ScoreKind = "amdim",
) -> Match:
    """How alike two pictures are, and where the query, or a region of it, is in the candidate.

    Args:
        query: What is looked for.
        candidate: Where it is looked for.
        region: A part of the query, 0..1 of its upright picture.
        kind: The score of maps and places.

    Raises:
        RegionError: The region is no rectangle or lies outside the query's centre crop.
    """
    region_place = None
    if region is not None:
        inside = query.frame.cells_in(region, 7)
        region_place = _place(query.local7[inside], candidate, kind)  # (M, D)
    return Match(
        cosine=float(cosine_score(query.default, candidate.default)),
        whole=_place(query.global_[None], candidate, kind),
        region=region_place,
    )


@dataclass(frozen=True)
class WindowMatch:
    """The window of a picture that is nearest to a query."""

    cosine: float
    scale: float
    box: Box  # 0..1 of the upright picture


def nearest_window(
    query: npt.NDArray[Any], windows: Sequence[tuple[WindowGrid, npt.NDArray[Any]]]
) -> WindowMatch:
    """The window, at any scale, whose vector has the highest cosine with the query's.

    Args:
        query: (E,).
        windows: For each scale its grid and (h, w, E) vectors; at least one scale.
    """
    best: WindowMatch | None = None
    for grid, vectors in windows:
        scores = cosine_score(query, vectors)  # (h, w)
        row, column = (int(at) for at in np.unravel_index(scores.argmax(), scores.shape))
        if best is None or scores[row, column] > best.cosine:
            best = WindowMatch(float(scores[row, column]), grid.scale, grid.box(row, column))
    if best is None:
        raise ContractError("there are no windows to compare with")
    return best


def _place(sources: npt.NDArray[Any], candidate: PictureFeatures, kind: ScoreKind) -> Place:
    scores = score_map(sources, candidate.local7, kind=kind)
    row, column = (int(at) for at in np.unravel_index(scores.argmax(), scores.shape))
    box = candidate.frame.cell_box(row, column, 7)
    return Place(float(scores[row, column]), (row, column), box, scores)
