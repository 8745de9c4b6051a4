"""Data sets in the formats they are published in, each read by its name: `NAME:FOLDER`.

Nothing here unpickles: CIFAR is read in its binary version. Knows no image size and no training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from amdim_training.errors import DataError
from amdim_training.sources import IMAGE_SUFFIXES, UNLABELED, Pixels, Row, file_row

_CIFAR_SIDE = 32
_STL_SIDE = 96
_PLACES_IMAGES = "data/vision/torralba/deeplearning/images256"

Reader = Callable[[Path, frozenset[str]], Iterator[Row]]


def cifar10_rows(folder: Path, splits: frozenset[str]) -> Iterator[Row]:
    """Yields CIFAR-10's binary version: a label byte and 32x32 planes a record."""
    files = {
        "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
        "test": ["test_batch.bin"],
    }
    return _cifar_rows(_below(folder, "cifar-10-batches-bin"), files, splits, labels=1)


def cifar100_rows(folder: Path, splits: frozenset[str]) -> Iterator[Row]:
    """Yields CIFAR-100's binary version, with its 100 fine labels."""
    files = {"train": ["train.bin"], "test": ["test.bin"]}
    return _cifar_rows(_below(folder, "cifar-100-binary"), files, splits, labels=2)


def _cifar_rows(
    folder: Path, files: dict[str, list[str]], splits: frozenset[str], *, labels: int
) -> Iterator[Row]:
    """Yields records of so many label bytes, the last of which counts, and three planes."""
    size = labels + 3 * _CIFAR_SIDE**2
    for name in (name for split in files if split in splits for name in files[split]):
        path = folder / name
        if not path.exists() and _has_pickles(folder):
            raise DataError(
                f"{folder} holds CIFAR's Python version, which is pickled and never opened here: "
                "take the binary version (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz)"
            )
        records = _bytes_of(path, size)
        pixels = records[:, labels:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
        for number, planes in enumerate(pixels):
            yield f"{name}#{number}", planes.transpose(1, 2, 0), int(records[number, labels - 1])


def _has_pickles(folder: Path) -> bool:
    places = [folder, *(path for path in folder.glob("cifar-*") if path.is_dir())]
    names = ("data_batch_1", "test_batch", "train", "test")
    return any((place / name).is_file() for place in places for name in names)


def stl10_rows(folder: Path, splits: frozenset[str]) -> Iterator[Row]:
    """Yields STL-10's binary version; `train` is the labelled and the unlabelled images (-1)."""
    yield from stl10_labelled_rows(folder, splits)
    if "train" in splits:
        yield from _stl10_file(_below(folder, "stl10_binary"), "unlabeled")


def stl10_labelled_rows(folder: Path, splits: frozenset[str]) -> Iterator[Row]:
    """Yields the labelled images of STL-10 alone: what kNN and classifiers learn from."""
    for split in ("train", "test"):
        if split in splits:
            yield from _stl10_file(_below(folder, "stl10_binary"), split)


def _stl10_file(folder: Path, name: str) -> Iterator[Row]:
    path = folder / f"{name}_X.bin"
    records = _bytes_of(path, 3 * _STL_SIDE**2)
    # stored column by column: (N, C, W, H) -> (N, H, W, C)
    pixels = records.reshape(-1, 3, _STL_SIDE, _STL_SIDE).transpose(0, 3, 2, 1)
    labels = np.full(len(pixels), UNLABELED)
    if name != "unlabeled":
        labels = _bytes_of(folder / f"{name}_y.bin", 1)[:, 0].astype(np.int64) - 1  # from 1
    if len(labels) != len(pixels):
        raise DataError(f"{path} holds {len(pixels)} pictures, and there are {len(labels)} labels")
    for number, picture in enumerate(pixels):
        yield f"{path.name}#{number}", picture, int(labels[number])


def tiny_imagenet_rows(folder: Path, splits: frozenset[str]) -> Iterator[Row]:
    """Yields Tiny ImageNet as unpacked: train/WNID/images, val/images and val_annotations.txt."""
    folder = _below(folder, "tiny-imagenet-200")
    number = _class_numbers(folder / "train")
    if "train" in splits:
        for name, label in number.items():
            yield from _folder(folder / "train" / name, label)
    if "val" in splits:
        lines = _lines(folder / "val" / "val_annotations.txt")
        for name, wnid in (line[:2] for line in lines):
            yield from file_row(folder / "val" / "images" / name, number.get(wnid, UNLABELED))


def imagenet_rows(folder: Path, splits: frozenset[str]) -> Iterator[Row]:
    """Yields ImageNet as commonly arranged: train/WNID/*.JPEG and val/WNID/*.JPEG."""
    number = _class_numbers(folder / "train")
    for split in ("train", "val"):
        if split in splits:
            for name, label in number.items():
                yield from _folder(folder / split / name, label)


def places205_rows(folder: Path, splits: frozenset[str]) -> Iterator[Row]:
    """Yields Places205 as published: its picture tree and the lists of trainvalsplit_places205."""
    for split in ("train", "val"):
        if split not in splits:
            continue
        for line in _lines(folder / "trainvalsplit_places205" / f"{split}_places205.csv"):
            yield from file_row(folder / _PLACES_IMAGES / line[0], int(line[1]))


FORMATS: dict[str, Reader] = {
    "cifar10": cifar10_rows,
    "cifar100": cifar100_rows,
    "stl10": stl10_rows,
    "stl10-labelled": stl10_labelled_rows,
    "tiny-imagenet": tiny_imagenet_rows,
    "imagenet": imagenet_rows,
    "places205": places205_rows,
}

SPLITS = {
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "stl10": ("train", "test"),
    "stl10-labelled": ("train", "test"),
    "tiny-imagenet": ("train", "val"),
    "imagenet": ("train", "val"),
    "places205": ("train", "val"),
}
"""The splits with labels that each of them has."""


def _below(folder: Path, name: str) -> Path:
    """Returns the folder that the published archive makes, where it was unpacked here."""
    return folder / name if (folder / name).is_dir() else folder


def _bytes_of(path: Path, record: int) -> Pixels:
    """Returns a file's (N, record) bytes, mapped rather than read.

    Raises:
        DataError: The file is missing or cut off.
    """
    try:
        size = path.stat().st_size
        if size == 0 or size % record:
            raise DataError(f"{path} is cut off: {size} bytes are no multiple of {record}")
        return np.memmap(path, np.uint8, "r").reshape(-1, record)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _class_numbers(folder: Path) -> dict[str, int]:
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    return {name: number for number, name in enumerate(names)}


def _folder(folder: Path, label: int) -> Iterator[Row]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield from file_row(path, label)


def _lines(path: Path) -> list[list[str]]:
    """Returns a list file's lines as words.

    Raises:
        DataError: The file is missing, or a line has fewer than two words.
    """
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read") from error
    if any(len(line) < 2 for line in lines):
        raise DataError(f"{path}: each line needs a picture and its class")
    return lines
