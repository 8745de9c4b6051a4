"""The interface of an index of vectors: whole pictures, and windows of them.

Knows no storage and no pictures: rows have keys, and a score is a cosine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from amdim_clients.conditions import Condition
from amdim_clients.facts import PictureFacts
from amdim_clients.pipeline import Record
from amdim_clients.space import VectorSpace
from amdim_clients.window_rows import PictureWindows, WindowPlan

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Neighbors:
    """The nearest rows to one query, best first."""

    keys: tuple[str, ...]  # K, fewer where the index holds fewer
    scores: FloatArray  # (K,) cosine, -1 to 1

    @property
    def distances(self) -> FloatArray:
        """(K,) cosine distances, 1 - score."""
        return np.float32(1) - self.scores


@dataclass(frozen=True)
class WindowNeighbors(Neighbors):
    """The nearest windows to one query, best first; a picture may have several."""

    scales: FloatArray  # (K,)
    boxes: FloatArray  # (K, 4)


@dataclass(frozen=True)
class StoredRow:
    """What an index knows of a picture without its vectors."""

    key: str
    content_hash: str
    windows: int | None  # how many it holds; None where it was added without


class NeighborIndex(Protocol):
    """Vectors of one space, found by key and by nearness."""

    space: VectorSpace

    @property
    def plan(self) -> WindowPlan | None:
        """Which windows it holds, None for an index of whole pictures only."""

    @property
    def window_count(self) -> int:
        """How many windows there are."""

    def __len__(self) -> int:
        """How many pictures there are."""

    def rows(self, root: str) -> Iterator[StoredRow]:
        """Every picture at or below `root`: a file, a folder or a pack."""

    def holders(self, content_hashes: Iterable[str]) -> Mapping[str, str]:
        """Content hash to the key of a picture that has it, where there is one."""

    def facts(self, keys: Iterable[str]) -> Mapping[str, PictureFacts]:
        """What is known of some pictures; unknown keys are left out."""

    def vectors(self, keys: Iterable[str]) -> Mapping[str, FloatArray]:
        """The (E,) vectors of some pictures; unknown keys are left out."""

    def sample(self, count: int) -> FloatArray:
        """(n, E) of so many pictures at most, spread over the index; the same ones each time."""

    def windows(self, keys: Iterable[str]) -> Mapping[str, PictureWindows]:
        """All windows of some pictures; those without are left out."""

    def add(
        self,
        records: Sequence[Record],
        vectors: FloatArray,
        *,
        space: VectorSpace,
        artifact_digest: str,
        windows: Sequence[PictureWindows] | None = None,
    ) -> None:
        """Insert pictures, in place of those with the same keys.

        Args:
            records: One for each picture, keys distinct.
            vectors: (N, E) float32.
            space: Where the vectors come from.
            artifact_digest: The artifact that made them, recorded with each row.
            windows: One for each picture, or None to store none.

        Raises:
            DigestMismatchError: They are of another space.
        """

    def remove(self, keys: Iterable[str]) -> None:
        """Delete these pictures and their windows; unknown keys are ignored."""

    def repair(self) -> None:
        """Drop what a killed writer left, so that the next update makes it anew."""

    def search(
        self,
        queries: FloatArray,
        count: int,
        *,
        space: VectorSpace,
        exact: bool = False,
        where: Sequence[Condition] = (),
    ) -> list[Neighbors]:
        """The `count` nearest pictures to each of (Q, E) queries.

        Raises:
            DigestMismatchError: The queries are of another space.
        """

    def search_windows(
        self,
        queries: FloatArray,
        count: int,
        *,
        space: VectorSpace,
        exact: bool = False,
        where: Sequence[Condition] = (),
    ) -> list[WindowNeighbors]:
        """The `count` nearest windows to each of (Q, E) queries.

        Raises:
            DigestMismatchError: The queries are of another space.
            IndexStoreError: The index holds no windows.
        """
