"""Images in memory: every source decoded once to uint8, labels beside them.

An epoch then costs no decoding. Knows no augmentation and no training.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from amdim_clients.errors import ImageError
from amdim_clients.images import Preprocess, decode_image, resize_and_crop
from amdim_training.errors import DataError
from amdim_training.sources import IMAGE_SUFFIXES as IMAGE_SUFFIXES  # for those who list folders
from amdim_training.sources import UNLABELED, Pixels, Row, open_source

_log = logging.getLogger(__name__)

Labels = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class ImageSet:
    """Decoded images.

    Attributes:
        pixels: (N, P, P, 3) uint8 RGB.
        labels: (N,) int64, -1 where a picture has none.
        skipped: Names of the pictures that could not be decoded.
    """

    pixels: Pixels
    labels: Labels
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def labelled(self) -> ImageSet:
        """Returns the pictures that have a label."""
        known = self.labels != UNLABELED
        if known.all():
            return self
        return ImageSet(self.pixels[known], self.labels[known], self.skipped)

    def subset(self, count: int, seed: int = 0) -> ImageSet:
        """Returns at most `count` images: the first of a shuffle that `seed` fixes."""
        if count >= len(self):
            return self
        order = np.random.default_rng(seed).permutation(len(self))[:count]
        return ImageSet(self.pixels[order], self.labels[order])


def load_images(
    sources: Sequence[str | Path],
    preprocess: Preprocess,
    *,
    splits: Sequence[str] = ("train",),
    progress: Callable[[int], None] | None = None,
) -> ImageSet:
    """Decodes every picture of packs, folders and named data sets into one array.

    Args:
        sources: `.parquet` files with an `image` column of {bytes, path}; folders, whose
            sub-folders are the classes; or data sets by name (`sources.open_source`).
        preprocess: How a picture becomes P x P pixels.
        splits: Rows to take of a source that has splits; folders are taken whole.
        progress: Called with the number of pictures decoded so far.

    Raises:
        DataError: A source is missing or unreadable, or no picture could be decoded.
    """
    pixels: list[Pixels] = []
    labels: list[int] = []
    skipped: list[str] = []

    def decode(row: Row) -> tuple[str, Pixels | None, int]:
        name, picture, label = row
        try:
            if isinstance(picture, bytes):
                return name, decode_image(picture, preprocess).pixels, label
            image = Image.fromarray(np.ascontiguousarray(picture))
            return name, resize_and_crop(image, preprocess), label
        except ImageError as error:
            _log.warning("skipped %s: %s", name, error)
            return name, None, label

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for source in sources:
            for chunk in _chunks(open_source(source, frozenset(splits))):
                for name, picture, label in pool.map(decode, chunk):
                    if picture is None:
                        skipped.append(name)
                        continue
                    pixels.append(picture)
                    labels.append(label)
                if progress is not None:
                    progress(len(pixels))
    if not pixels:
        raise DataError(
            f"no picture could be read from {', '.join(map(str, sources)) or 'nothing'}"
        )
    return ImageSet(np.stack(pixels), np.asarray(labels, dtype=np.int64), tuple(skipped))


def _chunks(rows: Iterator[Row], size: int = 2048) -> Iterator[list[Row]]:
    """Splits a stream so that only so many encoded pictures wait at a time."""
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
