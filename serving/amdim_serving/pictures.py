"""A request's picture as it came in, and its way to an encoder's pixels.

Runs on a thread; knows no event loop and no protocol.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass

from amdim_clients.images import DecodedImage, ImageLimits, Preprocess
from amdim_serving.errors import RequestError

Decode = Callable[[bytes | memoryview, Preprocess, ImageLimits], DecodedImage]


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture of a request.

    Attributes:
        data: The file's bytes, or as text its base64 or data URI.
        id: The caller's name for it, returned with its answer.
    """

    data: bytes | memoryview | str
    id: str | None = None


def decode_picture(
    decode: Decode, picture: Picture, preprocess: Preprocess, limits: ImageLimits
) -> DecodedImage:
    """Returns the pixels of a picture.

    Args:
        decode: What turns a file's bytes into pixels.
        picture: Its bytes, or their base64.
        preprocess: The encoder's sizes.
        limits: Checked from the header.

    Raises:
        ImageError: The bytes are not a usable picture.
        RequestError: bad_base64.
    """
    return decode(picture_bytes(picture), preprocess, limits)


def picture_bytes(picture: Picture) -> bytes | memoryview:
    """Returns a picture's file.

    Raises:
        RequestError: bad_base64.
    """
    data = picture.data
    return _from_base64(data) if isinstance(data, str) else data


def _from_base64(text: str) -> bytes:
    """Returns the bytes of base64 text or of a base64 data URI.

    Raises:
        RequestError: bad_base64.
    """
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise RequestError("bad_base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("bad_base64") from error
