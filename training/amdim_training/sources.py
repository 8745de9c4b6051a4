"""Where pictures come from: packs, folders, data sets by name and the Hugging Face hub.

A source yields rows and decodes nothing. Knows no image size and no training.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from amdim_training.errors import DataError

UNLABELED = -1
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)
HUB_NAMES = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
    "imagenet": "ILSVRC/imagenet-1k",
}
"""Data sets that need no folder, and where the hub keeps them as Parquet."""

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "fine_label", "labels")
_SPLIT_NAMES = {"validation": "val", "valid": "val"}
_NAME = re.compile(r"[a-z][a-z0-9-]+")

_log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Row = tuple[str, bytes | Pixels, int]
"""A picture's name, its encoded bytes or its (H, W, 3) pixels, and its label."""


def open_source(source: str | Path, splits: frozenset[str]) -> Iterator[Row]:
    """Returns the rows of one source.

    Args:
        source: A `.parquet` file, a folder of pictures, a name alone (`cifar10`: from the hub),
            a name and a folder (`stl10:DIR`), or `hf:OWNER/NAME`, with `@REVISION` after it.
        splits: Rows to take where a source has splits; a folder of pictures is taken whole.

    Raises:
        DataError: There is no such source, or it cannot be read.
    """
    from amdim_training.named_sources import FORMATS

    path = Path(source)
    hub = hub_name(source)
    if hub is not None:
        return hub_rows(hub, splits)
    root = source_root(source)
    if root != path:
        return FORMATS[str(source).partition(":")[0]](root, splits)
    return folder_rows(path) if path.is_dir() else parquet_rows(path, splits)


def hub_name(source: str | Path) -> str | None:
    """Returns the `OWNER/NAME[@REVISION]` that a source means on the hub, None for another."""
    if Path(source).exists():
        return None
    name, _, rest = str(source).partition(":")
    if name == "hf" and rest:
        return rest
    return HUB_NAMES.get(str(source))


def source_root(source: str | Path) -> Path:
    """Returns the file or folder that a source's pictures are in, the hub's copy downloaded.

    Raises:
        DataError: There is no such source.
    """
    from amdim_training.named_sources import FORMATS

    path = Path(source)
    if path.is_dir() or (path.suffix == ".parquet" and path.is_file()):
        return path
    hub = hub_name(source)
    if hub is not None:
        return hub_folder(hub)
    name, separator, rest = str(source).partition(":")
    if separator and name in FORMATS:
        if not rest or not Path(rest).is_dir():
            raise DataError(f"{source}: there is no folder {rest or '(none named)'}")
        return Path(rest)
    if not separator and name in FORMATS:
        raise DataError(f"{name} is not on the hub under a name known here: say {name}:FOLDER")
    if path.suffix == ".parquet":
        raise DataError(f"there is no file {source}")
    if not _NAME.fullmatch(name):
        raise DataError(f"{source} is neither a folder nor a .parquet file, nor a name known here")
    raise DataError(
        f"no data {str(source)!r}; known are a folder, a .parquet file, hf:OWNER/NAME, "
        f"{', '.join(HUB_NAMES)} (from the hub) and NAME:FOLDER with {', '.join(FORMATS)}"
    )


def parquet_rows(
    source: Path, splits: frozenset[str], *, split: str | None = None
) -> Iterator[Row]:
    """Yields the rows of a Parquet file with a column of {bytes, path} pictures.

    Args:
        source: The file.
        splits: Rows to take, by the `split` column where there is one.
        split: The split that the whole file is of, where its name says so.

    Raises:
        DataError: The file is unreadable or has no pictures.
    """
    if split is not None and split not in splits:
        return
    try:
        table = pq.ParquetFile(source)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise DataError(f"{source} cannot be read as Parquet") from error
    names = table.schema_arrow.names
    picture = next((name for name in _IMAGE_COLUMNS if name in names), None)
    label = next((name for name in _LABEL_COLUMNS if name in names), None)
    if picture is None:
        raise DataError(f"{source} has no column named image")
    has_split = "split" in names and split is None
    columns = [picture, *([label] if label else []), *(["split"] if has_split else [])]
    for batch in table.iter_batches(batch_size=1024, columns=columns):
        for row in batch.to_pylist():
            if not has_split or row["split"] in splits:
                yield _parquet_row(row, picture, label)


def _parquet_row(row: dict[str, Any], picture: str, label: str | None) -> Row:
    image = row[picture] or {}  # a missing picture is a broken one
    number = row[label] if label else None
    return image.get("path") or "", image.get("bytes") or b"", _label(number)


def _label(number: object) -> int:
    return number if isinstance(number, int) and number >= 0 else UNLABELED


def hub_rows(
    name: str,
    splits: frozenset[str],
    *,
    download: Callable[..., str] | None = None,
) -> Iterator[Row]:
    """Returns the rows of a hub data set that is kept as Parquet files named for their splits.

    Args:
        name: `OWNER/NAME` or `OWNER/NAME@REVISION`.
        splits: Splits to take; `validation` and `valid` count as `val`.
        download: `huggingface_hub.snapshot_download`, or what stands in for it.

    Raises:
        DataError: The data set cannot be had, or has no Parquet files of these splits.
    """
    files = hub_files(name, download=download)
    wanted = [path for path, split in files.items() if split in splits]
    if not wanted:
        raise DataError(
            f"hf:{name} has no Parquet file of {' or '.join(sorted(splits))}; "
            f"its splits: {', '.join(sorted(set(files.values()))) or 'none'}"
        )
    return (row for path in wanted for row in parquet_rows(path, splits, split=files[path]))


def hub_files(name: str, *, download: Callable[..., str] | None = None) -> dict[Path, str]:
    """Returns a hub data set's Parquet files, each with its split; arguments as `hub_rows`."""
    folder = hub_folder(name, download=download)
    return {path: hub_split(path) for path in sorted(folder.rglob("*.parquet"))}


def hub_folder(name: str, *, download: Callable[..., str] | None = None) -> Path:
    """Returns where the Parquet files of a hub data set are; arguments as `hub_rows`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        folder = (download or snapshot_download)(
            repository,
            repo_type="dataset",
            revision=revision or None,
            allow_patterns=["*.parquet"],
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"hf:{name} cannot be had from the hub or its cache: {reason}") from error
    return Path(folder)


def hub_split(path: Path) -> str:
    """Returns a file's split, as the hub names them: train-00000-of-00002.parquet is of train."""
    split = path.stem.partition("-")[0].rpartition(".")[2]
    if split.isdigit():  # a converted branch: SPLIT/0000.parquet
        split = path.parent.name
    return _SPLIT_NAMES.get(split, split)


def folder_rows(source: Path) -> Iterator[Row]:
    """Yields every picture below a folder; its sub-folders are the classes, by sorted name."""
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    classes = sorted({path.relative_to(source).parts[0] for path in files if path.parent != source})
    number = {name: index for index, name in enumerate(classes)}
    for path in files:
        label = UNLABELED if path.parent == source else number[path.relative_to(source).parts[0]]
        yield from file_row(path, label)


def file_row(path: Path, label: int) -> Iterator[Row]:
    """Yields one file's row; an unreadable file is reported as a broken picture."""
    try:
        yield str(path), path.read_bytes(), label
    except OSError as error:
        _log.warning("%s cannot be read: %s", path, error)
        yield str(path), b"", label
