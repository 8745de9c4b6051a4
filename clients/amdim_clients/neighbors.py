"""The interface of an index of vectors, and exact search, the oracle that others are held to.

Knows no storage and no pictures: rows have keys, and a score is a cosine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from amdim_clients.pipeline import Record
from amdim_clients.space import VectorSpace


@dataclass(frozen=True)
class Neighbors:
    """The nearest rows to one query, best first."""

    keys: tuple[str, ...]  # K, fewer where the index holds fewer
    scores: npt.NDArray[np.float32]  # (K,) cosine, -1 to 1

    @property
    def distances(self) -> npt.NDArray[np.float32]:
        """(K,) cosine distances, 1 - score."""
        return np.float32(1) - self.scores


class NeighborIndex(Protocol):
    """Vectors of one space, found by key and by nearness."""

    space: VectorSpace

    def __len__(self) -> int:
        """How many rows there are."""

    def content_hashes(self, root: str) -> Mapping[str, str]:
        """Key to content hash of every row at or below `root`: a file, a folder or a pack."""

    def add(
        self,
        records: Sequence[Record],
        vectors: npt.NDArray[np.float32],
        *,
        space: VectorSpace,
        artifact_digest: str,
    ) -> None:
        """Insert rows, in place of those with the same keys.

        Args:
            records: One for each row, keys distinct.
            vectors: (N, E) float32.
            space: Where the vectors come from.
            artifact_digest: The artifact that made them, recorded with each row.

        Raises:
            DigestMismatchError: They are of another space.
        """

    def remove(self, keys: Iterable[str]) -> None:
        """Delete the rows with these keys; unknown keys are ignored."""

    def search(
        self,
        queries: npt.NDArray[np.float32],
        count: int,
        *,
        space: VectorSpace,
        exact: bool = False,
    ) -> list[Neighbors]:
        """The `count` nearest rows to each of (Q, E) queries.

        Raises:
            DigestMismatchError: The queries are of another space.
        """


class ExactIndex:
    """All vectors in memory, every one compared: slow, plain and right."""

    def __init__(self, space: VectorSpace) -> None:
        """Start empty."""
        self.space = space
        self._hashes: dict[str, str] = {}
        self._vectors: dict[str, npt.NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self._vectors)

    def content_hashes(self, root: str) -> Mapping[str, str]:
        """Key to content hash of every row at or below `root`."""
        return {key: value for key, value in self._hashes.items() if is_below(key, root)}

    def add(
        self,
        records: Sequence[Record],
        vectors: npt.NDArray[np.float32],
        *,
        space: VectorSpace,
        artifact_digest: str,
    ) -> None:
        """Insert rows, in place of those with the same keys."""
        self.space.check(space)
        for record, vector in zip(records, vectors, strict=True):
            self._hashes[record.key] = record.content_hash
            self._vectors[record.key] = vector

    def remove(self, keys: Iterable[str]) -> None:
        """Delete the rows with these keys."""
        for key in keys:
            self._hashes.pop(key, None)
            self._vectors.pop(key, None)

    def search(
        self,
        queries: npt.NDArray[np.float32],
        count: int,
        *,
        space: VectorSpace,
        exact: bool = True,
    ) -> list[Neighbors]:
        """The `count` nearest rows to each query; equal scores in order of insertion."""
        self.space.check(space)
        if not self._vectors:
            return [Neighbors((), np.zeros(0, np.float32)) for _ in queries]
        keys = list(self._vectors)
        rows = _unit(np.stack(list(self._vectors.values())))
        scores = np.clip(_unit(queries) @ rows.T, -1, 1)  # (Q, N)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return [
            Neighbors(tuple(keys[column] for column in columns), scores[row, columns])
            for row, columns in enumerate(best)
        ]


def is_below(key: str, root: str) -> bool:
    """Whether a picture's key is `root` itself, in its folder, or in it as a pack."""
    return key == root or key.startswith(below_prefixes(root))


def below_prefixes(root: str) -> tuple[str, str]:
    """What keys below `root` begin with: as a folder and as a pack."""
    return root.rstrip(os.sep) + os.sep, root + "#"


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit.astype(np.float32)
