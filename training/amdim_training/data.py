"""Images decoded once to uint8, labels beside them: in memory, or in a cache mapped from disk.

An epoch then costs no decoding. Knows no augmentation and no training.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from amdim_clients.errors import ImageError
from amdim_clients.images import Preprocess, decode_image, resize_and_crop
from amdim_training.errors import DataError
from amdim_training.pixel_cache import Decoded, cache_key, open_cache, write_cache
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

    def labelled(self, at_most: int | None = None, seed: int = 0) -> ImageSet:
        """Returns the pictures that have a label, or `at_most` so many of them, as `subset` does.

        Nothing but what is returned is copied, however large the set.
        """
        known = self.labels != UNLABELED
        if at_most is None or at_most >= known.sum():
            if known.all():
                return self
            return ImageSet(self.pixels[known], self.labels[known], self.skipped)
        places = known.nonzero()[0]
        places = places[np.random.default_rng(seed).permutation(len(places))[:at_most]]
        return ImageSet(self.pixels[places], self.labels[places], self.skipped)

    def subset(self, count: int, seed: int = 0) -> ImageSet:
        """Returns at most `count` images: the first of a shuffle that `seed` fixes."""
        if count >= len(self):
            return self
        order = np.random.default_rng(seed).permutation(len(self))[:count]
        return ImageSet(self.pixels[order], self.labels[order], self.skipped)


def load_images(
    sources: Sequence[str | Path],
    preprocess: Preprocess,
    *,
    splits: Sequence[str] = ("train",),
    progress: Callable[[int], None] | None = None,
    cache: Path | None = None,
    wait: bool = False,
) -> ImageSet:
    """Decodes every picture of packs, folders and named data sets into one array.

    Args:
        sources: `.parquet` files with an `image` column of {bytes, path}; folders, whose
            sub-folders are the classes; or data sets by name (`sources.open_source`).
        preprocess: How a picture becomes P x P pixels.
        splits: Rows to take of a source that has splits; folders are taken whole.
        progress: Called with the number of pictures decoded so far.
        cache: A folder for decoded pictures: what is there is mapped, what is not is decoded
            into it, with no more than a few hundred pictures in memory.
        wait: Whether another process decodes into the cache, and this one waits for it.

    Raises:
        DataError: A source is missing or unreadable, no picture could be decoded, or the cache
            is broken or cannot be written.
    """
    rows = _decoded(sources, preprocess, splits, progress)
    if cache is not None:
        folder = cache / cache_key(sources, preprocess, splits)
        while wait and not folder.exists():
            time.sleep(1.0)
        if not folder.exists():
            _log.info("decoding once into %s", folder)
            write_cache(folder, rows, preprocess.image_size)
        held = open_cache(folder)
        if held is None:
            raise _nothing(sources)
        _log.info("%d pictures mapped from %s", len(held[1]), folder)
        return ImageSet(*held)
    pixels: list[Pixels] = []
    labels: list[int] = []
    skipped: list[str] = []
    for name, picture, label in rows:
        if picture is None:
            skipped.append(name)
            continue
        pixels.append(picture)
        labels.append(label)
    if not pixels:
        raise _nothing(sources)
    return ImageSet(np.stack(pixels), np.asarray(labels, dtype=np.int64), tuple(skipped))


def _nothing(sources: Sequence[str | Path]) -> DataError:
    return DataError(f"no picture could be read from {', '.join(map(str, sources)) or 'nothing'}")


def _decoded(
    sources: Sequence[str | Path],
    preprocess: Preprocess,
    splits: Sequence[str],
    progress: Callable[[int], None] | None,
) -> Iterator[Decoded]:
    """Yields every picture in order, decoded by as many threads as there are cores."""

    def decode(row: Row) -> Decoded:
        name, picture, label = row
        try:
            if isinstance(picture, bytes):
                return name, decode_image(picture, preprocess).pixels, label
            image = Image.fromarray(np.ascontiguousarray(picture))
            return name, resize_and_crop(image, preprocess), label
        except ImageError as error:
            _log.warning("skipped %s: %s", name, error)
            return name, None, label

    count = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for source in sources:
            for chunk in _chunks(open_source(source, frozenset(splits))):
                for decoded in pool.map(decode, chunk):
                    count += decoded[1] is not None
                    yield decoded
                if progress is not None:
                    progress(count)


def _chunks(rows: Iterator[Row], size: int = 256) -> Iterator[list[Row]]:
    """Splits a stream so that only so many encoded pictures wait at a time."""
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
