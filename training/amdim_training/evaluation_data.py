"""Which images of a data set are searched and which ask: splits and tasks, by their names.

Knows no encoder and no scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from amdim_clients.images import Preprocess
from amdim_training.data import ImageSet, load_images
from amdim_training.errors import DataError
from amdim_training.named_sources import FORMATS, SPLITS
from amdim_training.sources import hub_files, hub_name, source_root

TRAIN_SPLIT = "train"
_QUERY_SPLITS = ("val", "validation", "valid", "test")  # the first that is there
_RETRIEVAL_SPLITS = ("natural", "iconic")


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One question to a data set: these query images, among that gallery.

    Attributes:
        name: `queries->gallery`, by split.
        gallery: The split that is searched (and that classifiers are fitted on).
        queries: The split that asks.
        is_classification: Whether classes have enough gallery images for kNN and classifiers.
    """

    name: str
    gallery: str
    queries: str
    is_classification: bool

    @property
    def leaves_self_out(self) -> bool:
        """Whether an image asks among its own split and must not find itself."""
        return self.gallery == self.queries


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled images in splits: sources read as one; a folder holds a folder for each split."""

    name: str
    sources: tuple[str, ...]
    tasks: tuple[Task, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """Every split its tasks need, galleries first."""
        names = [task.gallery for task in self.tasks] + [task.queries for task in self.tasks]
        return tuple(dict.fromkeys(names))

    def load(
        self,
        split: str,
        preprocess: Preprocess,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> ImageSet:
        """Decodes a split's labelled images.

        Raises:
            DataError: A file is unreadable, or no labelled picture is in it.
        """
        sources = [
            Path(source) / split if Path(source).is_dir() else source for source in self.sources
        ]
        images = load_images(sources, preprocess, splits=(split,), progress=progress).labelled()
        if not len(images):
            raise DataError(f"{self.name}: no labelled picture in its split {split}")
        return images


def open_dataset(value: str) -> Dataset:
    """Returns the data set that a command line's value names.

    Args:
        value: Joined by commas and read as one: Parquet packs with a `split` column, folders that
            hold a folder for each split, data sets by name (`cifar10`, `cifar10:DIR`,
            `hf:OWNER/NAME`: `sources.open_source`).

    Raises:
        DataError: A path is missing, or its splits are neither train with val or test, nor
            natural with iconic.
    """
    sources = tuple(_labelled_only(part) for part in value.split(",") if part)
    if not sources:
        raise DataError("a data set needs at least one path or name")
    splits: set[str] = set()
    for source in sources:
        splits |= _splits(source)
    return Dataset(_name(sources[0]), sources, _tasks(value, splits))


def _labelled_only(source: str) -> str:
    """Returns a source without the unlabelled images that nothing here could score."""
    name, separator, rest = source.partition(":")
    if separator and f"{name}-labelled" in FORMATS:
        return f"{name}-labelled:{rest}"
    return source


def _name(source: str) -> str:
    """Returns what a table calls a source."""
    if Path(source).exists():
        return Path(source).stem
    name, _, rest = source.partition(":")
    return rest.rpartition("/")[2] if name == "hf" else name


def _tasks(value: str, splits: set[str]) -> tuple[Task, ...]:
    if splits.issuperset(_RETRIEVAL_SPLITS):
        queries, iconic = _RETRIEVAL_SPLITS
        return tuple(Task(f"{queries}->{g}", g, queries, False) for g in (queries, iconic))
    asking = [split for split in _QUERY_SPLITS if split in splits]
    if TRAIN_SPLIT in splits and asking:
        return (Task(f"{asking[0]}->{TRAIN_SPLIT}", TRAIN_SPLIT, asking[0], True),)
    raise DataError(
        f"{value} has the splits {sorted(splits)}; needed are {TRAIN_SPLIT} with one of "
        f"{', '.join(_QUERY_SPLITS)}, or {' with '.join(_RETRIEVAL_SPLITS)}"
    )


def _splits(source: str) -> set[str]:
    """Returns the splits that a source has.

    Raises:
        DataError: There is no such source.
    """
    path = Path(source)
    if path.is_dir():
        return {folder.name for folder in path.iterdir() if folder.is_dir()}
    hub = hub_name(source)
    if hub is not None:
        return set(hub_files(hub).values())
    root = source_root(source)
    if root != path:
        return set(SPLITS[source.partition(":")[0]])
    try:
        column = pq.read_table(path, columns=["split"])["split"]
    except (OSError, ValueError, KeyError) as error:  # ArrowInvalid is a ValueError
        raise DataError(f"{source} is no Parquet pack with a split column") from error
    return set(column.unique().to_pylist())
