"""What is known of a picture beside its vector, to filter answers by.

Read from the file's entry and its header, never from its pixels. Knows no storage.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

from PIL import ExifTags, Image

from amdim_clients.sniff import FORMATS
from amdim_clients.warnings_gate import without_pillow_warnings

# Orientations that lay a picture on its side.
_TURNED: Final = frozenset({5, 6, 7, 8})


@dataclass(frozen=True)
class PictureFacts:
    """One picture's file; what is not known is None."""

    bytes: int | None = None
    modified: int | None = None  # seconds since 1970, of the file or of the pack it lies in
    width: int | None = None  # of the upright picture, pixels
    height: int | None = None
    label: str | None = None  # where a pack says one


NO_FACTS: Final = PictureFacts()


def header_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of the upright picture as its header says, None where it says nothing."""
    with without_pillow_warnings():
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
        except Exception:  # plugins raise anything on broken bytes; decoding will say what is wrong
            return None
    return (height, width) if turned else (width, height)
