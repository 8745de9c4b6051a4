"""A contact sheet: queries and what was found side by side, to be looked at.

Knows no index: it draws bytes and captions.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from amdim_clients.atomic import written_aside
from amdim_clients.errors import ImageError
from amdim_clients.fields import Box
from amdim_clients.heat import heat_overlay
from amdim_clients.images import load_rgb

_TILE = 176  # pixels a side
_CAPTION = 34  # two lines of text
_GAP = 8
_COLUMNS = 6
_INK, _PAPER, _EMPTY, _FRAME = "#222222", "#ffffff", "#eeeeee", "#c62828"
_HALO, _BOX = "#000000", "#00e5ff"


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet."""

    caption: tuple[str, str]  # two lines; long ones lose their beginning
    data: bytes | None  # None where the picture is gone
    box: Box | None = None  # drawn on the picture, 0..1
    heat: npt.NDArray[np.float32] | None = None  # (n, n) in 0..1, laid over it


def contact_sheet(queries: Tile | Sequence[Tile], neighbors: Sequence[Tile]) -> Image.Image:
    """The queries, framed, and what was found in reading order.

    Returns:
        An RGB image.
    """
    first = [queries] if isinstance(queries, Tile) else list(queries)
    tiles = [*first, *neighbors]
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    step_x, step_y = _TILE + _GAP, _TILE + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for position, tile in enumerate(tiles):
        left = _GAP + position % columns * step_x
        top = _GAP + position // columns * step_y
        sheet.paste(draw_tile(tile, _TILE), (left, top))
        if position < len(first):
            draw.rectangle((left - 3, top - 3, left + _TILE + 2, top + _TILE + 2), None, _FRAME, 3)
        for line, text in enumerate(tile.caption):
            short = _shortened(text, lambda part: draw.textlength(part, font))
            draw.text((left, top + _TILE + 2 + 15 * line), short, _INK, font)
    return sheet


def _shortened(text: str, width_of: Callable[[str], float]) -> str:
    """The text, or as much of its end as stands below one tile."""
    short = text
    for start in range(1, len(text)):
        if width_of(short) <= _TILE:
            break
        short = "…" + text[start:]
    return short


def save_sheet(sheet: Image.Image, target: Path) -> None:
    """Write a sheet as PNG, whole or not at all.

    Raises:
        SourceError: It cannot be written.
    """
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    with written_aside(target) as aside:
        aside.write_bytes(buffer.getvalue())


def draw_tile(tile: Tile, side: int) -> Image.Image:
    """A picture in the middle of a square, with its heat and its box."""
    square = Image.new("RGB", (side, side), _EMPTY)
    if tile.data is None:
        return square
    try:
        picture = ImageOps.contain(load_rgb(tile.data), (side, side))
    except ImageError:
        return square
    if tile.heat is not None:
        overlay = heat_overlay(tile.heat, picture.size)
        picture.paste(overlay, (0, 0), overlay)
    if tile.box is not None:
        width, height = picture.size
        x0, y0, x1, y1 = tile.box
        draw = ImageDraw.Draw(picture)
        edges = (x0 * width, y0 * height, x1 * width - 1, y1 * height - 1)
        draw.rectangle(edges, None, _HALO, 4)
        inner = (edges[0] + 1, edges[1] + 1, edges[2] - 1, edges[3] - 1)
        draw.rectangle(inner, None, _BOX, 2)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
