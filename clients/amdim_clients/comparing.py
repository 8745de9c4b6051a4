"""Two pictures side by side: how alike they are, and which part of one is which of the other.

Knows neither engines nor files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from amdim_clients.embedders import Embedder
from amdim_clients.errors import EngineError, ImageError
from amdim_clients.facts import header_size
from amdim_clients.fields import Box, PictureFrame
from amdim_clients.images import Preprocess, load_rgb
from amdim_clients.inputs import ImageFailure
from amdim_clients.matching import Match, PictureFeatures, amdim_score, match_pictures
from amdim_clients.window_rows import PictureWindows

OUTPUTS: Final = ("embedding", "global", "local5", "local7")
_GRID: Final = 7
_SIDE: Final = 420  # pixels a drawn picture
_COLORS: Final = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#42d4f4")


@dataclass(frozen=True)
class Pair:
    """A part of one picture and the part of another that it corresponds to."""

    score: float  # the trained one
    first: Box
    second: Box


@dataclass(frozen=True)
class Comparison:
    """What two pictures have in common."""

    match: Match  # the first picture's view of the second
    reverse: Match
    pairs: tuple[Pair, ...]  # best first: each is the other's best

    def to_json(self) -> dict[str, Any]:
        """The comparison in plain values."""
        return {
            "cosine": self.match.cosine,
            "score": self.match.whole.score,
            "box_in_second": self.match.whole.box,
            "map_of_second": self.match.whole.map.tolist(),
            "box_in_first": self.reverse.whole.box,
            "map_of_first": self.reverse.whole.map.tolist(),
            "pairs": [
                {"score": pair.score, "first": pair.first, "second": pair.second}
                for pair in self.pairs
            ],
        }


def picture_features(data: bytes, embedder: Embedder) -> PictureFeatures:
    """A picture's raw vectors of all kinds.

    Args:
        data: A whole file.
        embedder: Gives `OUTPUTS`, not normalised.

    Raises:
        ImageError: The bytes are not a usable picture.
    """
    (found,) = embedder.embed([embedder.prepare(data)])
    if isinstance(found, ImageFailure):
        try:
            raise ImageError(found.code)
        except KeyError as error:
            raise EngineError(found.message) from error
    size = header_size(data)
    if isinstance(found, PictureWindows) or size is None:
        raise EngineError("the model gives no local vectors to compare by")
    preprocess = _preprocess(embedder.origin.preprocess_digest)
    default, global_, local5, local7 = (found[name] for name in OUTPUTS)
    return PictureFeatures(default, global_, local5, local7, PictureFrame(*size, preprocess))


def compare(first: PictureFeatures, second: PictureFeatures, *, pairs: int = 5) -> Comparison:
    """How alike two pictures are, and where they correspond.

    Args:
        first: As the model gives it.
        second: As the model gives it.
        pairs: Corresponding parts at most.
    """
    return Comparison(
        match_pictures(first, second),
        match_pictures(second, first),
        tuple(_pairs(first, second))[:pairs],
    )


def draw_comparison(first: bytes, second: bytes, comparison: Comparison) -> Image.Image:
    """Both pictures with their corresponding parts in the same colours."""
    sheet = Image.new("RGB", (2 * _SIDE + 36, _SIDE + 60), "#ffffff")
    draw = ImageDraw.Draw(sheet)
    for at, data in enumerate((first, second)):
        picture = load_rgb(data)
        picture.thumbnail((_SIDE, _SIDE))
        inner = ImageDraw.Draw(picture)
        for color, pair in zip(_COLORS, comparison.pairs, strict=False):
            x0, y0, x1, y1 = pair.second if at else pair.first
            width, height = picture.size
            edges = (x0 * width, y0 * height, x1 * width - 1, y1 * height - 1)
            inner.rectangle(edges, None, color, 3)
        sheet.paste(picture, (12 + at * (_SIDE + 12), 12))
    line = f"cosine {comparison.match.cosine:.3f}   score {comparison.match.whole.score:.2f}"
    draw.text((12, _SIDE + 24), line, "#222222", ImageFont.load_default(16))
    return sheet


def _pairs(first: PictureFeatures, second: PictureFeatures) -> list[Pair]:
    """Cells that choose each other, best first."""
    a = first.local7.reshape(_GRID * _GRID, -1)
    b = second.local7.reshape(_GRID * _GRID, -1)
    # A cell's score for every other cell alike says nothing about where: means are taken off.
    scores = amdim_score(a[:, None], b[None])  # (49, 49)
    relative = scores - scores.mean(0, keepdims=True) - scores.mean(1, keepdims=True)
    rows: npt.NDArray[np.int64] = relative.argmax(axis=1)
    back = relative.argmax(axis=0)
    mutual = [row for row in range(len(rows)) if back[rows[row]] == row]
    mutual.sort(key=lambda row: -relative[row, rows[row]])
    return [
        Pair(
            float(scores[row, rows[row]]),
            first.frame.cell_box(*divmod(row, _GRID), _GRID),
            second.frame.cell_box(*divmod(int(rows[row]), _GRID), _GRID),
        )
        for row in mutual
    ]


def _preprocess(digest: str) -> Preprocess:
    for side in (32, 64, 128):
        preprocess = Preprocess.for_image_size(side)
        if preprocess.digest == digest:
            return preprocess
    raise EngineError("the model's preprocessing is not one that this program knows")
