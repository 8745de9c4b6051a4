"""A `NeighborIndex` on Qdrant: its own server or cluster, or its client's local mode.

Two collections, of pictures and of windows. A picture counts once its point is there; its windows
are written before and removed after. Knows no pictures and no encoder.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException

from amdim_clients.conditions import Condition
from amdim_clients.errors import IndexStoreError
from amdim_clients.facts import PictureFacts
from amdim_clients.neighbors import FloatArray, Neighbors, StoredRow, WindowNeighbors
from amdim_clients.pipeline import Record
from amdim_clients.qdrant_filters import any_of, below, picture_facts, picture_payload, where_filter
from amdim_clients.space import VectorSpace
from amdim_clients.store_rows import (
    Owner,
    as_cosines,
    chunks,
    counting,
    leftovers,
    nearest_counting,
    window_counts,
)
from amdim_clients.window_rows import NO_WINDOWS, PictureWindows, WindowPlan

_NAMESPACE: Final = uuid.UUID("6f9a3a66-7f0c-5d53-9a3e-6a2f6e2b5c11")
_BATCH: Final = 256
_OWNER: Final = ["path", "content_hash"]


class QdrantIndex:
    """An index in two collections; opened by `qdrant_index`."""

    def __init__(
        self, client: QdrantClient, name: str, space: VectorSpace, plan: WindowPlan | None
    ) -> None:
        """Wrap existing collections that say `space` and `plan`."""
        self._client = client
        self._name = name
        self.space = space
        self.plan = plan

    def __len__(self) -> int:
        with told():
            return int(self._client.count(self._name, exact=True).count)

    @property
    def window_count(self) -> int:
        """How many windows there are."""
        if self.plan is None:
            return 0
        with told():
            return int(self._client.count(windows_of(self._name), exact=True).count)

    def rows(self, root: str) -> Iterator[StoredRow]:
        """Every picture at or below `root`."""
        for point in self._scroll(self._name, below(root), ["path", "content_hash", "windows"]):
            payload = point.payload
            yield StoredRow(payload["path"], payload["content_hash"], payload.get("windows"))

    def holders(self, content_hashes: Iterable[str]) -> Mapping[str, str]:
        """Content hash to the key of a picture that has it."""
        found = self._having("content_hash", content_hashes, _OWNER)
        return {point.payload["content_hash"]: point.payload["path"] for point in found}

    def facts(self, keys: Iterable[str]) -> Mapping[str, PictureFacts]:
        """What is known of some pictures."""
        found = self._having("path", keys, True)
        return {point.payload["path"]: picture_facts(point.payload) for point in found}

    def vectors(self, keys: Iterable[str]) -> Mapping[str, FloatArray]:
        """The vectors of some pictures."""
        found = self._having("path", keys, ["path"], vectors=True)
        return {p.payload["path"]: np.asarray(p.vector, np.float32) for p in found}

    def sample(self, count: int) -> FloatArray:
        """The vectors of so many pictures at most: the first by id, a hash of the key."""
        points = islice(self._scroll(self._name, None, False, vectors=True), count)
        found = [point.vector for point in points]
        return np.array(found, np.float32).reshape(-1, self.space.dim)

    def windows(self, keys: Iterable[str]) -> Mapping[str, PictureWindows]:
        """All windows of some pictures."""
        wanted = list(keys)
        if self.plan is None or not wanted:
            return {}
        hashes = self._hashes(wanted)
        points: dict[str, list[Any]] = {}
        for chunk in chunks(wanted, _BATCH):
            held = list(
                self._scroll(windows_of(self._name), any_of("path", chunk), True, vectors=True)
            )
            for at in counting(map(_owner, held), hashes):
                points.setdefault(_owner(held[at])[0], []).append(held[at])
        return {path: _picture_windows(found) for path, found in points.items()}

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
        if windows is not None:
            if self.plan is None:
                raise IndexStoreError(NO_WINDOWS)
            for record, each in zip(records, windows, strict=True):
                self._upsert(windows_of(self._name), window_points(record, each))
        counts = window_counts(windows, len(records))
        self._upsert(
            self._name,
            (
                models.PointStruct(
                    id=_id(record.key),
                    vector=vector.tolist(),
                    payload={
                        **picture_payload(record),
                        "artifact_digest": artifact_digest,
                        "windows": count,
                    },
                )
                for record, vector, count in zip(records, vectors, counts, strict=True)
            ),
        )
        if self.plan is not None:
            for record in records:
                self._drop_windows(record.key, but=record.content_hash if windows else None)

    def remove(self, keys: Iterable[str]) -> None:
        """Delete these pictures and their windows."""
        for chunk in chunks(keys, _BATCH):
            with told():
                ids = [_id(key) for key in chunk]
                self._client.delete(self._name, models.PointIdsList(points=ids), wait=True)
                if self.plan is not None:
                    selector = models.FilterSelector(filter=any_of("path", chunk))
                    self._client.delete(windows_of(self._name), selector, wait=True)

    def repair(self) -> None:
        """Drop windows of no picture, and pictures short of windows: they are encoded again."""
        if self.plan is None:
            return
        owners = map(_owner, self._scroll(windows_of(self._name), None, _OWNER))
        left = leftovers(self.rows("/"), owners)
        for key, content in left.strays.items():
            self._drop_windows(key, but=content)
        self.remove(left.short)

    def tune(self) -> None:
        """Nothing to do: the server keeps its own index in order."""

    def search(
        self,
        queries: FloatArray,
        count: int,
        *,
        space: VectorSpace,
        exact: bool = False,
        where: Sequence[Condition] = (),
    ) -> list[Neighbors]:
        """The `count` nearest pictures to each query."""
        self.space.check(space)
        found = (self._nearest(self._name, q, count, exact, where, ["path"]) for q in queries)
        return [Neighbors(tuple(p.payload["path"] for p in ps), _scores(ps)) for ps in found]

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
        if self.plan is None:
            raise IndexStoreError(NO_WINDOWS)
        return [self._search_windows(query, count, exact, where) for query in queries]

    def _search_windows(
        self, query: FloatArray, count: int, exact: bool, where: Sequence[Condition]
    ) -> WindowNeighbors:
        def ask(wanted: int) -> tuple[list[Any], list[Owner]]:
            name = windows_of(self._name)
            points = self._nearest(name, query, wanted, exact, where, True)
            return points, [_owner(point) for point in points]

        found, kept = nearest_counting(ask, self._hashes, count=count, total=self.window_count)
        windows = [found[at] for at in kept]
        return WindowNeighbors(
            keys=tuple(point.payload["path"] for point in windows),
            scores=_scores(windows),
            scales=np.array([point.payload["scale"] for point in windows], np.float32),
            boxes=np.array([p.payload["box"] for p in windows], np.float32).reshape(-1, 4),
        )

    def _nearest(
        self,
        name: str,
        query: FloatArray,
        count: int,
        exact: bool,
        where: Sequence[Condition],
        payload: Any,
    ) -> list[Any]:
        with told():
            answer = self._client.query_points(
                name,
                query=query.tolist(),
                limit=count,
                query_filter=where_filter(where),
                search_params=models.SearchParams(exact=exact),
                with_payload=payload,
            )
        return list(answer.points)

    def _hashes(self, keys: Iterable[str]) -> dict[str, str]:
        return dict(map(_owner, self._having("path", keys, _OWNER)))

    def _having(
        self, field: str, values: Iterable[str], payload: Any, *, vectors: bool = False
    ) -> Iterator[Any]:
        for chunk in chunks(dict.fromkeys(values), _BATCH):
            yield from self._scroll(self._name, any_of(field, chunk), payload, vectors=vectors)

    def _scroll(
        self, name: str, condition: models.Filter | None, payload: Any, *, vectors: bool = False
    ) -> Iterator[Any]:
        offset = None
        while True:
            with told():
                points, offset = self._client.scroll(
                    name,
                    condition,
                    _BATCH,
                    offset=offset,
                    with_payload=payload,
                    with_vectors=vectors,
                )
            yield from points
            if offset is None:
                return

    def _upsert(self, name: str, points: Iterable[models.PointStruct]) -> None:
        for chunk in chunks(points, _BATCH):
            with told():
                self._client.upsert(name, list(chunk), wait=True)

    def _drop_windows(self, key: str, *, but: str | None) -> None:
        outdated = any_of("path", [key])
        if but is not None:
            outdated.must_not = any_of("content_hash", [but]).must
        with told():
            selector = models.FilterSelector(filter=outdated)
            self._client.delete(windows_of(self._name), selector, wait=True)


@contextmanager
def told() -> Iterator[None]:
    """Turns a failure of the server into an `IndexStoreError`."""
    try:
        yield
    except ResponseHandlingException as error:
        raise IndexStoreError(
            "no answer from the Qdrant server: check its address and that it runs"
        ) from error
    except ApiException as error:
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            raise IndexStoreError(
                "the Qdrant server refuses the key: set AMDIM_QDRANT_API_KEY"
            ) from error
        raise IndexStoreError(f"the Qdrant server answered with an error ({status})") from error


def windows_of(name: str) -> str:
    """The collection of an index's windows."""
    return f"{name}_windows"


def _id(*parts: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, "\n".join(parts)))


def window_points(record: Record, windows: PictureWindows) -> Iterator[models.PointStruct]:
    """A point for each window of a picture."""
    payload = picture_payload(record)
    for at in range(len(windows)):
        yield models.PointStruct(
            id=_id(record.key, record.content_hash, str(at)),
            vector=windows.vectors[at].astype(np.float32).tolist(),
            payload={
                **payload,
                "at": at,
                "scale": float(windows.scales[at]),
                "box": windows.boxes[at].tolist(),
            },
        )


def _picture_windows(points: list[Any]) -> PictureWindows:
    points.sort(key=lambda point: int(point.payload["at"]))
    return PictureWindows(
        np.array([point.payload["scale"] for point in points], np.float32),
        np.array([point.payload["box"] for point in points], np.float32),
        np.array([point.vector for point in points], np.float16),
    )


def _scores(points: Sequence[Any]) -> FloatArray:
    return as_cosines([point.score for point in points])


def _owner(point: Any) -> Owner:
    return point.payload["path"], point.payload["content_hash"]
