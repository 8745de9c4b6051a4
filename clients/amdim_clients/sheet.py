"""A contact sheet: a query and its neighbours side by side, to be looked at.

Knows no index: it draws bytes and captions.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from amdim_clients.atomic import written_aside
from amdim_clients.errors import ImageError
from amdim_clients.images import load_rgb

_TILE = 176  # pixels a side
_CAPTION = 34  # two lines of text
_GAP = 8
_COLUMNS = 6
_INK, _PAPER, _FRAME = "#222222", "#ffffff", "#c62828"


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet."""

    caption: tuple[str, str]  # two lines; long ones lose their beginning
    data: bytes | None  # None where the picture is gone


def contact_sheet(query: Tile, neighbors: Sequence[Tile]) -> Image.Image:
    """The query, framed, and its neighbours in reading order.

    Returns:
        An RGB image.
    """
    tiles = [query, *neighbors]
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    step_x, step_y = _TILE + _GAP, _TILE + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for position, tile in enumerate(tiles):
        left = _GAP + position % columns * step_x
        top = _GAP + position // columns * step_y
        sheet.paste(_thumbnail(tile.data), (left, top))
        if position == 0:
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


def _thumbnail(data: bytes | None) -> Image.Image:
    blank = Image.new("RGB", (_TILE, _TILE), "#eeeeee")
    if data is None:
        return blank
    try:
        return ImageOps.pad(load_rgb(data), (_TILE, _TILE), color="#eeeeee")
    except ImageError:
        return blank
