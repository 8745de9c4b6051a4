"""What a caller may hand over as an image, as the bytes of a file, and how many go in one request.

Knows no server: it only reads, encodes and counts.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from amdim_clients.errors import SourceError

# A path, a whole file's bytes, a picture as seen (no EXIF turn), or (H, W, 3) or (H, W) uint8.
ImageInput: TypeAlias = str | Path | bytes | memoryview | Image.Image | npt.NDArray[np.uint8]

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


@dataclass(frozen=True)
class ImageFailure:
    """Why one image has no vector; the others of its request have theirs."""

    code: str  # a stable code of the wire contract, or `unreadable` for a file here
    message: str


@dataclass(frozen=True)
class RequestLimits:
    """How a call is cut into requests."""

    max_images: int = 32  # per request
    max_bytes: int = 8 << 20  # per request, in base64; one image always fits
    concurrency: int = 4  # requests on their way at a time


@dataclass(frozen=True)
class RequestBatch:
    """The images of one request."""

    indices: tuple[int, ...]  # positions in what the caller passed
    payloads: tuple[bytes, ...]  # whole files

    def halves(self) -> tuple[RequestBatch, RequestBatch]:
        """Two batches of about half the images each."""
        half = len(self.indices) // 2
        return (
            RequestBatch(self.indices[:half], self.payloads[:half]),
            RequestBatch(self.indices[half:], self.payloads[half:]),
        )


def as_images(images: Iterable[ImageInput] | ImageInput) -> Iterable[ImageInput]:
    """The images one by one; a single one counts as a list of one."""
    is_single = isinstance(images, (str, Path, bytes, memoryview, Image.Image)) or (
        isinstance(images, np.ndarray) and images.ndim < 4
    )
    return [images] if is_single else images  # type: ignore[list-item, return-value]


def image_bytes(image: ImageInput) -> bytes:
    """The bytes of a file that holds the image; pixels are stored without loss.

    Raises:
        SourceError: A path cannot be read, or an array is no uint8 picture.
    """
    if isinstance(image, (str, Path)):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise SourceError(f"cannot read {image}") from error
    if isinstance(image, np.ndarray):
        return _encode(_picture(image))
    if isinstance(image, Image.Image):
        return _encode(image)
    return bytes(image)


def plan_requests(
    images: Iterable[ImageInput] | ImageInput, limits: RequestLimits
) -> Iterator[RequestBatch | tuple[int, ImageFailure]]:
    """Request batches in order, read only as they are asked for; unreadable files as failures.

    Args:
        images: Read lazily, once.
        limits: What one request may hold.
    """
    indices: list[int] = []
    payloads: list[bytes] = []
    planned_bytes = 0
    for index, image in enumerate(as_images(images)):
        try:
            payload = image_bytes(image)
        except SourceError as error:
            yield index, ImageFailure("unreadable", str(error))
            continue
        sent_bytes = (len(payload) + 2) // 3 * 4
        if indices and (_is_full(len(indices), planned_bytes + sent_bytes, limits)):
            yield RequestBatch(tuple(indices), tuple(payloads))
            indices, payloads, planned_bytes = [], [], 0
        indices.append(index)
        payloads.append(payload)
        planned_bytes += sent_bytes
    if indices:
        yield RequestBatch(tuple(indices), tuple(payloads))


def _is_full(count: int, planned_bytes: int, limits: RequestLimits) -> bool:
    return count == limits.max_images or planned_bytes > limits.max_bytes


def _picture(array: npt.NDArray[Any]) -> Image.Image:
    is_grey = array.ndim == 2
    is_color = array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype != np.uint8 or not (is_grey or is_color) or array.size == 0:
        raise SourceError(
            f"an image array must be uint8 (H, W), (H, W, 3) or (H, W, 4), "
            f"not {array.dtype} {array.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    if image.mode in _PNG_MODES:
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "TIFF")
    return buffer.getvalue()
