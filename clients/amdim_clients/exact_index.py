"""Exact search in memory: the oracle that stores are held to. Keeps nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amdim_clients.conditions import Condition, all_hold
from amdim_clients.errors import IndexStoreError
from amdim_clients.facts import PictureFacts
from amdim_clients.keys import is_below
from amdim_clients.neighbors import FloatArray, Neighbors, StoredRow, WindowNeighbors
from amdim_clients.pipeline import Record
from amdim_clients.space import VectorSpace
from amdim_clients.store_rows import as_cosines, spread
from amdim_clients.window_rows import NO_WINDOWS, PictureWindows, WindowPlan


@dataclass(frozen=True)
class _Row:
    record: Record
    vector: FloatArray
    windows: PictureWindows | None


class ExactIndex:
    """All vectors in memory, every one compared: slow, plain and right."""

    def __init__(self, space: VectorSpace, plan: WindowPlan | None = None) -> None:
        """Start empty."""
        self.space = space
        self.plan = plan
        self._rows: dict[str, _Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def window_count(self) -> int:
        """How many windows there are."""
        return sum(len(row.windows) for row in self._rows.values() if row.windows)

    def rows(self, root: str) -> Iterator[StoredRow]:
        """Every picture at or below `root`."""
        for key, row in list(self._rows.items()):
            if is_below(key, root):
                windows = None if row.windows is None else len(row.windows)
                yield StoredRow(key, row.record.content_hash, windows)

    def holders(self, content_hashes: Iterable[str]) -> Mapping[str, str]:
        """Content hash to the key of a picture that has it."""
        wanted = set(content_hashes)
        held = {row.record.content_hash: key for key, row in self._rows.items()}
        return {content: key for content, key in held.items() if content in wanted}

    def facts(self, keys: Iterable[str]) -> Mapping[str, PictureFacts]:
        """What is known of some pictures."""
        return {key: self._rows[key].record.facts for key in keys if key in self._rows}

    def vectors(self, keys: Iterable[str]) -> Mapping[str, FloatArray]:
        """The vectors of some pictures."""
        return {key: self._rows[key].vector for key in keys if key in self._rows}

    def sample(self, count: int) -> FloatArray:
        """The vectors of so many pictures at most, evenly in order of insertion."""
        rows = list(self._rows.values())
        found = [rows[at].vector for at in spread(count, len(rows))]
        return np.array(found, np.float32).reshape(-1, self.space.dim)

    def windows(self, keys: Iterable[str]) -> Mapping[str, PictureWindows]:
        """All windows of some pictures."""
        found = ((key, self._rows[key].windows) for key in keys if key in self._rows)
        return {key: windows for key, windows in found if windows is not None}

    def add(
        self,
        records: Sequence[Record],
        vectors: FloatArray,
        *,
        space: VectorSpace,
        artifact_digest: str,
        windows: Sequence[PictureWindows] | None = None,
    ) -> None:
        """Insert pictures, in place of those with the same keys."""
        self.space.check(space)
        for row, (record, vector) in enumerate(zip(records, vectors, strict=True)):
            self._rows[record.key] = _Row(record, vector, windows[row] if windows else None)

    def remove(self, keys: Iterable[str]) -> None:
        """Delete these pictures."""
        for key in keys:
            self._rows.pop(key, None)

    def repair(self) -> None:
        """Nothing is ever left halfway."""

    def search(
        self,
        queries: FloatArray,
        count: int,
        *,
        space: VectorSpace,
        exact: bool = True,
        where: Sequence[Condition] = (),
    ) -> list[Neighbors]:
        """The `count` nearest pictures to each query; equal scores in order of insertion."""
        self.space.check(space)
        rows = self._fitting(where)
        keys = [row.record.key for row in rows]
        vectors = np.stack([row.vector for row in rows]) if rows else None
        return [
            Neighbors(tuple(keys[at] for at in best), scores)
            for best, scores in _nearest(queries, vectors, count)
        ]

    def search_windows(
        self,
        queries: FloatArray,
        count: int,
        *,
        space: VectorSpace,
        exact: bool = True,
        where: Sequence[Condition] = (),
    ) -> list[WindowNeighbors]:
        """The `count` nearest windows to each query."""
        self.space.check(space)
        if self.plan is None:
            raise IndexStoreError(NO_WINDOWS)
        keys: list[str] = []
        boxes: list[npt.NDArray[Any]] = [np.zeros((0, 4))]
        scales: list[npt.NDArray[Any]] = [np.zeros(0)]
        vectors: list[npt.NDArray[Any]] = [np.zeros((0, self.space.dim))]
        for row in self._fitting(where):
            if row.windows is not None:
                keys += [row.record.key] * len(row.windows)
                boxes.append(row.windows.boxes)
                scales.append(row.windows.scales)
                vectors.append(row.windows.vectors)
        flat = [np.concatenate(part).astype(np.float32) for part in (boxes, scales, vectors)]
        return [
            WindowNeighbors(
                keys=tuple(keys[at] for at in best),
                scores=scores,
                boxes=flat[0][best],
                scales=flat[1][best],
            )
            for best, scores in _nearest(queries, flat[2], count)
        ]

    def _fitting(self, where: Sequence[Condition]) -> list[_Row]:
        return [row for key, row in self._rows.items() if all_hold(where, key, row.record.facts)]


def _nearest(
    queries: FloatArray, vectors: FloatArray | None, count: int
) -> Iterator[tuple[npt.NDArray[np.int64], FloatArray]]:
    """For each query the best rows and their cosines, best first."""
    if vectors is None or not len(vectors):
        for _ in queries:
            yield np.zeros(0, np.int64), np.zeros(0, np.float32)
        return
    scores = as_cosines(_unit(queries) @ _unit(vectors).T)  # (Q, N)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    for row, columns in enumerate(best):
        yield columns, scores[row, columns]


def _unit(vectors: FloatArray) -> FloatArray:
    unit: FloatArray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit.astype(np.float32)
