"""A sample of the pictures in packs and folders: only what is drawn is read and decoded.

The draw is fixed, so the same files give the same pictures. Knows no encoder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from amdim_clients.images import Preprocess, decode_image
from amdim_export.errors import PicturesError
from amdim_training.data import IMAGE_SUFFIXES

TRAIN = ("train",)
HELD_OUT = ("val", "validation", "test")

Pixels = npt.NDArray[np.uint8]
_CHUNK = 512


def sample_pictures(
    sources: Sequence[Path],
    preprocess: Preprocess,
    *,
    limit: int,
    splits: Sequence[str] = TRAIN,
    progress: Callable[[int], None] | None = None,
) -> Pixels:
    """Draws pictures from all sources together and decodes them.

    Args:
        sources: Parquet packs with an `image` column of {bytes, path}, or folders of files.
        preprocess: How a picture becomes P x P pixels.
        limit: Pictures at most; those that cannot be decoded are left out.
        splits: Rows to draw from where a pack has a `split` column; folders are taken whole.
        progress: Called with the number of pictures decoded so far.

    Returns:
        (N, P, P, 3) uint8, in the order of the sources.

    Raises:
        PicturesError: A source is missing or unreadable, or no picture could be decoded.
    """
    eligible = [_eligible(source, splits) for source in sources]
    total = sum(map(len, eligible))
    drawn = np.sort(np.random.default_rng(0).permutation(total)[:limit])
    pixels: list[Pixels] = []
    start = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for source, rows in zip(sources, eligible, strict=True):
            mine = drawn[(drawn >= start) & (drawn < start + len(rows))] - start
            start += len(rows)
            for chunk in _chunks(_read(source, [rows[index] for index in mine])):
                decoded = pool.map(lambda data: _decode(data, preprocess), chunk)
                pixels += [picture for picture in decoded if picture is not None]
                if progress is not None:
                    progress(len(pixels))
    if not pixels:
        names = ", ".join(map(str, sources))
        raise PicturesError(f"no picture of {' or '.join(splits)} rows could be read from {names}")
    return np.stack(pixels)


def digest_of_sources(sources: Sequence[Path]) -> str:
    """Returns `sha256:<hex>` of all bytes of packs and folders, wherever they lie.

    Raises:
        PicturesError: A source is missing or unreadable.
    """
    digest = hashlib.sha256()
    for source in sources:
        if source.is_dir():
            files = [(str(path.relative_to(source)), path) for path in _files(source)]
        else:
            files = [("", source)]
        for name, path in files:
            try:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise PicturesError(f"{path} cannot be read") from error
            digest.update(f"{name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return "sha256:" + digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _eligible(source: Path, splits: Sequence[str]) -> list[int] | list[Path]:
    """Returns a pack's row numbers or a folder's files, whichever may be drawn."""
    if source.is_dir():
        return _files(source)
    if source.suffix != ".parquet" or not source.is_file():
        raise PicturesError(f"{source} is neither a folder nor a .parquet file")
    try:
        pack = pq.ParquetFile(source)
        names = pack.schema_arrow.names
        if "image" not in names:
            raise PicturesError(f"{source} has no column named image")
        if "split" not in names:
            return list(range(pack.metadata.num_rows))
        split = pack.read(columns=["split"]).column("split").to_pylist()
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise PicturesError(f"{source} cannot be read as Parquet") from error
    return [index for index, value in enumerate(split) if value in splits]


def _read(source: Path, chosen: Sequence[int | Path]) -> Iterator[bytes]:
    """Yields the encoded bytes of chosen files or (rising) row numbers."""
    rows = []
    for item in chosen:
        if isinstance(item, Path):
            yield item.read_bytes()
        else:
            rows.append(item)
    wanted, seen = np.asarray(rows, dtype=np.int64), 0
    if not len(wanted):
        return
    for batch in pq.ParquetFile(source).iter_batches(batch_size=1024, columns=["image"]):
        here = wanted[(wanted >= seen) & (wanted < seen + len(batch))] - seen
        seen += len(batch)
        for row in batch.take(here).column("image").to_pylist():
            yield row["bytes"]


def _decode(data: bytes, preprocess: Preprocess) -> Pixels | None:
    try:
        return decode_image(data, preprocess).pixels
    except Exception as error:
        if getattr(error, "is_user_error", False):  # a broken picture; any other fault is ours
            return None
        raise


def _chunks(items: Iterator[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
