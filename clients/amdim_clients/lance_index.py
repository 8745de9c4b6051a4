"""A `NeighborIndex` on LanceDB: a folder on disk, each change a transaction of its own.

The space of its vectors is kept in the table's schema, so neither exists without the other.
Knows no pictures and no encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.index import HnswSq

from amdim_clients.errors import IndexStoreError
from amdim_clients.neighbors import Neighbors, below_prefixes
from amdim_clients.pipeline import Record
from amdim_clients.space import VectorSpace

TABLE: Final = "images"
VECTOR: Final = "vector"
_SPACE_KEY: Final = b"amdim"
# Below this, comparing every row takes milliseconds; an approximate index only loses neighbours.
ANN_MIN_ROWS: Final = 100_000
_KEYS_PER_STATEMENT: Final = 500
# Searched partitions and exactly rescored candidates per neighbour asked for.
_PROBES: Final = 40
_REFINE: Final = 4


class LanceIndex:
    """An index at a path; open it with `open_index`, or `create_index` for a new one."""

    def __init__(self, table: Any, space: VectorSpace) -> None:
        """Wrap an open table whose schema says `space`."""
        self._table = table
        self.space = space

    def __len__(self) -> int:
        return int(self._table.count_rows())

    def content_hashes(self, root: str) -> Mapping[str, str]:
        """Key to content hash of every row at or below `root`."""
        folder, pack = below_prefixes(root)
        below = (
            f"path = {_quoted(root)} OR starts_with(path, {_quoted(folder)})"
            f" OR starts_with(path, {_quoted(pack)})"
        )
        rows = self._table.search().where(below).select(["path", "content_hash"]).to_arrow()
        return dict(zip(rows["path"].to_pylist(), rows["content_hash"].to_pylist(), strict=True))

    def add(
        self,
        records: Sequence[Record],
        vectors: npt.NDArray[np.float32],
        *,
        space: VectorSpace,
        artifact_digest: str,
    ) -> None:
        """Insert rows, in place of those with the same keys, in one transaction."""
        self.space.check(space)
        rows = pa.table(
            [
                pa.array([record.key for record in records], pa.string()),
                pa.array([record.content_hash for record in records], pa.string()),
                pa.array([artifact_digest] * len(records), pa.string()),
                pa.FixedSizeListArray.from_arrays(
                    pa.array(np.ascontiguousarray(vectors, np.float32).ravel()), self.space.dim
                ),
            ],
            schema=_schema(self.space),
        )
        merge = self._table.merge_insert("path")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def remove(self, keys: Iterable[str]) -> None:
        """Delete the rows with these keys, some hundred in a transaction."""
        for chunk in _chunks(list(keys), _KEYS_PER_STATEMENT):
            self._table.delete(f"path IN ({', '.join(_quoted(key) for key in chunk)})")

    def search(
        self,
        queries: npt.NDArray[np.float32],
        count: int,
        *,
        space: VectorSpace,
        exact: bool = False,
    ) -> list[Neighbors]:
        """The `count` nearest rows to each query; approximate only where `tune` built an index."""
        self.space.check(space)
        return [self._search_one(query, count, exact) for query in queries]

    def tune(self, *, ann_min_rows: int = ANN_MIN_ROWS) -> None:
        """Compact what many small transactions left, and index approximately where it pays.

        Args:
            ann_min_rows: Rows from which an approximate index is built.
        """
        self._table.optimize()
        if len(self) >= ann_min_rows and not self.is_approximate:
            self._table.create_index(VECTOR, config=HnswSq(distance_type="cosine"))

    @property
    def is_approximate(self) -> bool:
        """Whether searches use an approximate index unless asked to be exact."""
        return any(VECTOR in index.columns for index in self._table.list_indices())

    @property
    def artifact_digests(self) -> set[str]:
        """The artifacts that made the vectors."""
        rows = self._table.search().select(["artifact_digest"]).to_arrow()
        return set(rows["artifact_digest"].unique().to_pylist())

    def _search_one(self, query: npt.NDArray[np.float32], count: int, exact: bool) -> Neighbors:
        request = self._table.search(query, vector_column_name=VECTOR).distance_type("cosine")
        if exact:
            request = request.bypass_vector_index()
        elif self.is_approximate:
            request = request.nprobes(_PROBES).refine_factor(_REFINE)
        rows = request.limit(count).select(["path", "_distance"]).to_arrow()
        # Rounding can leave the cosine of two equal vectors a little above 1.
        scores = np.clip(1 - rows["_distance"].to_numpy().astype(np.float32), -1, 1)
        return Neighbors(tuple(rows["path"].to_pylist()), scores)


def open_index(path: Path) -> LanceIndex:
    """The index at `path`.

    Raises:
        IndexStoreError: There is none, or it does not say where its vectors come from.
    """
    if not path.is_dir():
        raise IndexStoreError(f"there is no index at {path}")
    try:
        table = lancedb.connect(path).open_table(TABLE)
    except (ValueError, OSError, RuntimeError) as error:
        raise IndexStoreError(f"there is no index at {path}") from error
    metadata = table.schema.metadata or {}
    return LanceIndex(table, VectorSpace.from_json(metadata.get(_SPACE_KEY, b"null").decode()))


def create_index(path: Path, space: VectorSpace) -> LanceIndex:
    """A new and empty index at `path`.

    Raises:
        IndexStoreError: It cannot be created there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = lancedb.connect(path).create_table(TABLE, schema=_schema(space))
    except (ValueError, OSError, RuntimeError) as error:
        raise IndexStoreError(f"cannot create an index at {path}") from error
    return LanceIndex(table, space)


def open_or_create_index(path: Path, space: VectorSpace) -> LanceIndex:
    """The index at `path` for vectors of `space`, a new one where there is none.

    Raises:
        DigestMismatchError: The index there holds vectors of another space.
        IndexStoreError: It is broken or cannot be created.
    """
    if not (path / f"{TABLE}.lance").exists():
        return create_index(path, space)
    index = open_index(path)
    index.space.check(space)
    return index


def _schema(space: VectorSpace) -> Any:
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("content_hash", pa.string(), nullable=False),
            pa.field("artifact_digest", pa.string(), nullable=False),
            pa.field(VECTOR, pa.list_(pa.float32(), space.dim), nullable=False),
        ],
        metadata={_SPACE_KEY: space.to_json().encode()},
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
