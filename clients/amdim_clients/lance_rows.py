"""A `NeighborIndex` on LanceDB: a folder or an object store, each change a transaction of its own.

A picture counts once its row in `images` is there; its windows are written before and removed
after, and windows without such a row are never shown. So a writer may be killed at any point.
Knows no pictures and no encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute
from lancedb.index import BTree, IvfRq

from amdim_clients.conditions import Condition
from amdim_clients.errors import IndexStoreError
from amdim_clients.facts import PictureFacts
from amdim_clients.lance_tables import (
    BOX,
    FACTS,
    VECTOR,
    WINDOWS,
    any_of,
    below_sql,
    facts_of,
    image_rows,
    matrix,
    told,
    where_sql,
    window_rows,
)
from amdim_clients.neighbors import FloatArray, Neighbors, StoredRow, WindowNeighbors
from amdim_clients.pipeline import Record
from amdim_clients.space import VectorSpace
from amdim_clients.store_rows import (
    Owner,
    as_cosines,
    chunks,
    counting,
    leftovers,
    nearest_counting,
    spread,
)
from amdim_clients.window_rows import NO_WINDOWS, PictureWindows, WindowPlan

# Below this, comparing every row takes milliseconds; an approximate index only loses neighbours.
ANN_MIN_ROWS: Final = 100_000
_KEYS_PER_STATEMENT: Final = 500
_ROWS_PER_BATCH: Final = 4096
# Searched partitions, and exactly rescored candidates per neighbour asked for: measured by
# benchmarks/search.py at a million vectors.
_PROBES: Final = 80
_REFINE: Final = 10
_OWNER: Final = ["path", "content_hash"]


class LanceIndex:
    """An index at a place; opened by `lance_index`."""

    def __init__(
        self,
        place: str,
        images: Any,
        windows: Any,
        space: VectorSpace,
        plan: WindowPlan | None,
    ) -> None:
        """Wrap open tables whose schemas say `space` and `plan`; `windows` may be None."""
        self.place = place
        self.space = space
        self.plan = plan
        self._images = images
        self._windows = windows
        # what `sample` gave, of which version of the table
        self._sampled: tuple[tuple[int, int], FloatArray] | None = None

    def __len__(self) -> int:
        with told(self.place):
            return int(self._images.count_rows())

    @property
    def window_count(self) -> int:
        """How many windows there are."""
        with told(self.place):
            return int(self._windows.count_rows()) if self._windows is not None else 0

    @property
    def is_whole(self) -> bool:
        """Whether the tables agree: no killed writer has left windows of its own."""
        counted = 0
        for batch in self._batches(self._images, [WINDOWS], None):
            counted += int(pa.compute.sum(batch[WINDOWS]).as_py() or 0)
        return counted == self.window_count

    def rows(self, root: str) -> Iterator[StoredRow]:
        """Every picture at or below `root`."""
        columns = ["path", "content_hash", WINDOWS]
        for batch in self._batches(self._images, columns, below_sql(root)):
            for key, content_hash, count in zip(
                *(batch[name].to_pylist() for name in columns), strict=True
            ):
                yield StoredRow(key, content_hash, count)

    def holders(self, content_hashes: Iterable[str]) -> Mapping[str, str]:
        """Content hash to the key of a picture that has it."""
        found = self._by(self._images, "content_hash", content_hashes, _OWNER)
        return {row["content_hash"]: row["path"] for row in found.to_pylist()}

    def facts(self, keys: Iterable[str]) -> Mapping[str, PictureFacts]:
        """What is known of some pictures."""
        found = self._by(self._images, "path", keys, ["path", *FACTS])
        return {row["path"]: facts_of(row) for row in found.to_pylist()}

    def vectors(self, keys: Iterable[str]) -> Mapping[str, FloatArray]:
        """The vectors of some pictures."""
        found = self._by(self._images, "path", keys, ["path", VECTOR])
        return dict(
            zip(found["path"].to_pylist(), matrix(found[VECTOR], self.space.dim), strict=True)
        )

    def windows(self, keys: Iterable[str]) -> Mapping[str, PictureWindows]:
        """All windows of some pictures."""
        if self._windows is None:
            return {}
        wanted = list(keys)
        contents = self._hashes(wanted)
        found = self._by(self._windows, "path", wanted, [*_OWNER, "scale", *BOX, VECTOR])
        owners = _owners(found)
        places: dict[str, list[int]] = {}
        for at in counting(owners, contents):
            places.setdefault(owners[at][0], []).append(at)
        scales = found["scale"].to_numpy()
        boxes = np.stack([found[name].to_numpy() for name in BOX], axis=1)
        vectors = matrix(found[VECTOR], self.space.dim)
        return {
            path: PictureWindows(scales[at], boxes[at], vectors[at]) for path, at in places.items()
        }

    def sample(self, count: int) -> FloatArray:
        """The vectors of so many pictures at most, evenly in the order they are stored in."""
        with told(self.place):
            state = self._images.version, count
            if self._sampled is None or self._sampled[0] != state:
                offsets = spread(count, self._images.count_rows())
                rows = self._images.take_offsets(offsets).select([VECTOR]).to_arrow()
                self._sampled = state, matrix(rows[VECTOR], self.space.dim)
        return self._sampled[1]

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
        if not records:
            return
        with told(self.place):
            if windows is not None:
                if self._windows is None or self.plan is None:
                    raise IndexStoreError(NO_WINDOWS)
                self._windows.add(window_rows(records, windows, self.space, self.plan))
            rows = image_rows(records, vectors, windows, artifact_digest, self.space)
            merge = self._images.merge_insert("path")
            merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)
            if self._windows is not None:
                self._drop_outdated(records, keep=windows is not None)

    def remove(self, keys: Iterable[str]) -> None:
        """Delete these pictures and their windows, some hundred in a transaction."""
        with told(self.place):
            for chunk in chunks(keys, _KEYS_PER_STATEMENT):
                self._images.delete(any_of("path", chunk))
                if self._windows is not None:
                    self._windows.delete(any_of("path", chunk))

    def search(
        self,
        queries: FloatArray,
        count: int,
        *,
        space: VectorSpace,
        exact: bool = False,
        where: Sequence[Condition] = (),
    ) -> list[Neighbors]:
        """The `count` nearest pictures to each query; approximate only where `tune` built that."""
        self.space.check(space)
        found = (self._nearest(self._images, q, count, exact, where, ["path"]) for q in queries)
        return [Neighbors(tuple(rows["path"].to_pylist()), _scores(rows)) for rows in found]

    def search_windows(
        self,
        queries: FloatArray,
        count: int,
        *,
        space: VectorSpace,
        exact: bool = False,
        where: Sequence[Condition] = (),
    ) -> list[WindowNeighbors]:
        """The `count` nearest windows to each query."""
        self.space.check(space)
        if self._windows is None:
            raise IndexStoreError(NO_WINDOWS)
        return [self._search_windows(query, count, exact, where) for query in queries]

    def repair(self) -> None:
        """Drop what a killed writer left: windows of no picture, and pictures short of windows.

        Pictures so dropped are encoded again by the next update.
        """
        if self._windows is None or self.is_whole:
            return
        owners = (
            owner
            for batch in self._batches(self._windows, _OWNER, None)
            for owner in _owners(batch)
        )
        left = leftovers(self.rows("/"), owners)
        with told(self.place):
            for chunk in chunks(left.strays, _KEYS_PER_STATEMENT):
                contents = [content for key in chunk if (content := left.strays[key]) is not None]
                stray = any_of("path", chunk)
                if contents:
                    stray += f" AND NOT {any_of('content_hash', contents)}"
                self._windows.delete(stray)
        self.remove(left.short)

    def tune(self, *, ann_min_rows: int = ANN_MIN_ROWS) -> None:
        """Compact what many small transactions left, and index approximately where it pays.

        Args:
            ann_min_rows: Rows from which an approximate index is built.
        """
        with told(self.place):
            for table in (self._images, self._windows):
                if table is not None and table.count_rows():
                    _tune(table, ann_min_rows)

    @property
    def is_approximate(self) -> bool:
        """Whether searches use an approximate index unless asked to be exact."""
        return _ann_name(self._images) is not None

    @property
    def artifact_digests(self) -> set[str]:
        """The artifacts that made the vectors."""
        found: set[str] = set()
        for batch in self._batches(self._images, ["artifact_digest"], None):
            found.update(batch["artifact_digest"].unique().to_pylist())
        return found

    def _search_windows(
        self, query: FloatArray, count: int, exact: bool, where: Sequence[Condition]
    ) -> WindowNeighbors:
        def ask(wanted: int) -> tuple[Any, list[Owner]]:
            columns = [*_OWNER, "scale", *BOX]
            rows = self._nearest(self._windows, query, wanted, exact, where, columns)
            return rows, _owners(rows)

        rows, kept = nearest_counting(ask, self._hashes, count=count, total=self.window_count)
        rows = rows.take(pa.array(kept, pa.int64()))
        return WindowNeighbors(
            keys=tuple(rows["path"].to_pylist()),
            scores=_scores(rows),
            scales=rows["scale"].to_numpy(),
            boxes=np.stack([rows[name].to_numpy() for name in BOX], axis=1),
        )

    def _nearest(
        self,
        table: Any,
        query: FloatArray,
        count: int,
        exact: bool,
        where: Sequence[Condition],
        columns: list[str],
    ) -> Any:
        with told(self.place):
            request = table.search(query, vector_column_name=VECTOR).distance_type("cosine")
            if (condition := where_sql(where)) is not None:
                request = request.where(condition, prefilter=True)
            if exact:
                request = request.bypass_vector_index()
            else:
                request = request.nprobes(_PROBES).refine_factor(_REFINE)
            return request.limit(count).select([*columns, "_distance"]).to_arrow()

    def _hashes(self, keys: Iterable[str]) -> dict[str, str]:
        return dict(_owners(self._by(self._images, "path", keys, _OWNER)))

    def _by(self, table: Any, column: str, values: Iterable[str], columns: list[str]) -> Any:
        """Rows whose column is one of the values."""
        parts = []
        with told(self.place):
            for chunk in chunks(dict.fromkeys(values), _KEYS_PER_STATEMENT):
                request = table.search().where(any_of(column, chunk)).select(columns)
                parts.append(request.to_arrow())
            if not parts:
                return table.search().limit(0).select(columns).to_arrow()
        return pa.concat_tables(parts)

    def _batches(self, table: Any, columns: list[str], where: str | None) -> Iterator[Any]:
        with told(self.place):
            request = table.search().select(columns)
            if where is not None:
                request = request.where(where)
            yield from request.to_batches(_ROWS_PER_BATCH)

    def _drop_outdated(self, records: Sequence[Record], *, keep: bool) -> None:
        """Remove the windows of what these pictures were before."""
        for chunk in chunks(records, _KEYS_PER_STATEMENT):
            condition = any_of("path", [record.key for record in chunk])
            if keep:
                now = any_of("content_hash", [record.content_hash for record in chunk])
                condition += f" AND NOT {now}"
            self._windows.delete(condition)


def _tune(table: Any, ann_min_rows: int) -> None:
    table.optimize()
    rows, name = table.count_rows(), _ann_name(table)
    if rows < ann_min_rows:
        return
    if not any("path" in index.columns for index in table.list_indices()):
        table.create_index("path", config=BTree())  # the pictures that were found are read by it
    # Partitions are laid out once: a table that has doubled since is better laid out anew.
    stats = table.index_stats(name) if name is not None else None
    if stats is None or stats.num_unindexed_rows > stats.num_indexed_rows:
        table.create_index(VECTOR, config=IvfRq(distance_type="cosine"), replace=True)


def _ann_name(table: Any) -> str | None:
    return next((str(i.name) for i in table.list_indices() if VECTOR in i.columns), None)


def _scores(rows: Any) -> FloatArray:
    return as_cosines(1 - rows["_distance"].to_numpy().astype(np.float32))


def _owners(rows: Any) -> list[Owner]:
    return list(zip(rows["path"].to_pylist(), rows["content_hash"].to_pylist(), strict=True))
