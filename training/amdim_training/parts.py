"""Training data in parts of bounded size, for machines that get their data a piece at a time.

A part is a `.npz`: the pictures' files end to end and where each ends, deflated together, so that
the headers that small JPEGs share cost little. It needs NumPy and Pillow to be read, no Arrow.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amdim_clients.errors import ImageError
from amdim_clients.images import Preprocess, decode_image
from amdim_training.errors import DataError

Pixels = npt.NDArray[np.uint8]

SUFFIX = ".npz"


def cut_parts(
    sources: Sequence[str | Path], folder: Path, *, part_bytes: int, splits: Sequence[str]
) -> list[Path]:
    """Cuts sources into parts, each written aside and renamed.

    Args:
        sources: As `data.load_images` takes them; their pictures must be encoded files.
        folder: Made where it is missing.
        part_bytes: Size of a part at most, before it is deflated.
        splits: Rows to take.

    Raises:
        DataError: A source is unreadable, or holds pixels instead of files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for source in sources:
        for files in _groups(_files(source, splits), part_bytes):
            path = folder / f"part-{len(written):03d}{SUFFIX}"
            buffer = io.BytesIO()
            np.savez_compressed(
                buffer,
                files=np.frombuffer(b"".join(files), np.uint8),
                ends=np.cumsum([len(file) for file in files], dtype=np.int64),
            )
            aside = path.with_suffix(".partial")
            aside.write_bytes(buffer.getvalue())
            aside.rename(path)
            written.append(path)
    return written


def read_part(path: Path, side: int) -> Pixels:
    """Decodes a part to (N, P, P, 3) uint8; pictures that cannot be decoded are left out.

    Raises:
        DataError: The file is no part, or nothing in it could be decoded.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            files, ends = arrays["files"].tobytes(), arrays["ends"].tolist()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a part: {error}") from error
    preprocess = Preprocess(image_size=side, resize=side)

    def decode(bounds: tuple[int, int]) -> Pixels | None:
        try:
            return decode_image(files[bounds[0] : bounds[1]], preprocess).pixels
        except ImageError:
            return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        decoded = list(pool.map(decode, zip([0, *ends[:-1]], ends, strict=True)))
    pixels = [picture for picture in decoded if picture is not None]
    if not pixels:
        raise DataError(f"{path}: no picture in it could be decoded")
    return np.stack(pixels)


class PartsFolder:
    """A folder that parts arrive in."""

    def __init__(self, folder: Path, side: int) -> None:
        self._folder, self._side = folder, side
        self._taken: set[Path] = set()

    def take_new(self) -> list[Pixels]:
        """Decodes the parts that came since the last call.

        Raises:
            DataError: One of them is broken.
        """
        came = sorted(set(self._folder.glob(f"*{SUFFIX}")) - self._taken)
        self._taken.update(came)
        return [read_part(path, self._side) for path in came]


def _files(source: str | Path, splits: Sequence[str]) -> Iterator[bytes]:
    from amdim_training.sources import open_source  # Arrow: where parts are cut, not where read

    for name, picture, _ in open_source(source, frozenset(splits)):
        if not isinstance(picture, bytes):
            raise DataError(f"{source}: {name} is pixels, not a picture's file")
        yield picture


def _groups(files: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    total = 0
    for file in files:
        if group and total + len(file) > size:
            yield group
            group, total = [], 0
        group.append(file)
        total += len(file)
    if group:
        yield group
