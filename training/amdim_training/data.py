"""Images in memory: Parquet packs and folders decoded once to uint8, labels beside them.

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
import pyarrow.parquet as pq

from amdim_clients.errors import ImageError
from amdim_clients.images import Preprocess, decode_image
from amdim_training.errors import DataError

UNLABELED = -1
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)

_log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Row = tuple[str, bytes, int]
"""A picture's name, its encoded bytes and its label."""


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
    """Decodes every picture of Parquet packs and image folders into one array.

    Args:
        sources: `.parquet` files with an `image` column of {bytes, path}, or folders; the
            sub-folders of a folder are its classes.
        preprocess: How a picture becomes P x P pixels.
        splits: Rows to take of a pack that has a `split` column; folders are taken whole.
        progress: Called with the number of pictures decoded so far.

    Raises:
        DataError: A source is missing or unreadable, or no picture could be decoded.
    """
    pixels: list[Pixels] = []
    labels: list[int] = []
    skipped: list[str] = []

    def decode(row: Row) -> tuple[str, Pixels | None, int]:
        name, encoded, label = row
        try:
            return name, decode_image(encoded, preprocess).pixels, label
        except ImageError as error:
            _log.warning("skipped %s: %s", name, error)
            return name, None, label

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for source in sources:
            for chunk in _chunks(_rows(Path(source), frozenset(splits))):
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


def _rows(source: Path, splits: frozenset[str]) -> Iterator[Row]:
    if source.is_dir():
        return _folder_rows(source)
    if source.suffix == ".parquet" and source.is_file():
        return _parquet_rows(source, splits)
    raise DataError(f"{source} is neither a folder nor a .parquet file")


def _parquet_rows(source: Path, splits: frozenset[str]) -> Iterator[Row]:
    try:
        table = pq.ParquetFile(source)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise DataError(f"{source} cannot be read as Parquet") from error
    names = set(table.schema_arrow.names)
    if "image" not in names:
        raise DataError(f"{source} has no column named image")
    columns = [name for name in ("image", "label", "split") if name in names]
    for batch in table.iter_batches(batch_size=1024, columns=columns):
        for row in batch.to_pylist():
            if "split" in row and row["split"] not in splits:
                continue
            image = row["image"]
            label = row.get("label")
            yield image.get("path") or "", image["bytes"], UNLABELED if label is None else label


def _folder_rows(source: Path) -> Iterator[Row]:
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    classes = sorted({path.relative_to(source).parts[0] for path in files if path.parent != source})
    number = {name: index for index, name in enumerate(classes)}
    for path in files:
        label = UNLABELED if path.parent == source else number[path.relative_to(source).parts[0]]
        try:
            yield str(path), path.read_bytes(), label
        except OSError as error:
            _log.warning("skipped %s: %s", path, error)


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
