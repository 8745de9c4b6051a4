"""Sources in, vectors out: reading and decoding in threads while the embedder works.

Memory is bounded by a window of pictures on their way, whatever the number of sources.
Knows neither engines nor storage.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from amdim_clients.embedders import Embedder
from amdim_clients.errors import ImageError, SourceError
from amdim_clients.facts import NO_FACTS, PictureFacts, header_size
from amdim_clients.inputs import ImageFailure
from amdim_clients.walk import ImageSource
from amdim_clients.window_rows import WINDOW_MEAN, PictureWindows


@dataclass(frozen=True)
class Record:
    """Which picture a vector belongs to."""

    key: str
    content_hash: str  # sha256 of the file's bytes, hexadecimal
    facts: PictureFacts = NO_FACTS


class Known(StrEnum):
    """What is to be done about a picture that was read."""

    NEW = auto()  # encode it
    SAME = auto()  # nothing
    MOVED = auto()  # the same content is held under another key


@dataclass
class Outcome:
    """What became of the pictures since the last outcome, every one in exactly one list."""

    records: list[Record] = field(default_factory=list)
    arrays: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)  # rows as `records`
    windows: list[PictureWindows] = field(default_factory=list)  # as `records`, where there are any
    unchanged: list[str] = field(default_factory=list)  # keys
    moved: list[Record] = field(default_factory=list)
    failed: list[tuple[str, ImageFailure]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many pictures it speaks of."""
        return len(self.records) + len(self.unchanged) + len(self.moved) + len(self.failed)


@dataclass(frozen=True)
class _Prepared:
    record: Record
    value: Any


_Item: TypeAlias = "_Prepared | str | Record | tuple[str, ImageFailure]"


def embed_sources(
    sources: Iterable[ImageSource],
    embedder: Embedder,
    *,
    workers: int | None = None,
    known: Callable[[str, str], Known] = lambda key, content_hash: Known.NEW,
) -> Generator[Outcome, None, None]:
    """Vectors of all sources, a batch at a time, order kept among those that have one.

    Args:
        sources: Read lazily, at most the embedder's window ahead.
        embedder: Called from the calling thread only.
        workers: Threads that read and decode; default one per core.
        known: Called from several threads with a picture's key and content hash.
    """
    size = embedder.batch_size

    def prepare(source: ImageSource) -> _Item:
        return _prepare(source, embedder, known)

    with ThreadPoolExecutor(workers or _cores(), "amdim-decode") as pool:
        waiting: deque[Future[_Item]] = deque()
        outcome, batch = Outcome(), list[_Prepared]()
        remaining = iter(sources)
        try:
            while True:
                _fill(waiting, remaining, pool, prepare, limit=embedder.window)
                if not waiting:
                    break
                item = waiting.popleft().result()
                if isinstance(item, _Prepared):
                    batch.append(item)
                elif isinstance(item, str):
                    outcome.unchanged.append(item)
                elif isinstance(item, Record):
                    outcome.moved.append(item)
                else:
                    outcome.failed.append(item)
                if len(batch) == size or outcome.count >= size:
                    _embed(batch, embedder, outcome)
                    yield outcome
                    outcome, batch = Outcome(), []
            _embed(batch, embedder, outcome)
            if outcome.count:
                yield outcome
        finally:
            for future in waiting:
                future.cancel()


def _fill(
    waiting: deque[Future[Any]],
    remaining: Iterator[ImageSource],
    pool: ThreadPoolExecutor,
    prepare: Callable[[ImageSource], Any],
    *,
    limit: int,
) -> None:
    while len(waiting) < limit:
        source = next(remaining, None)
        if source is None:
            return
        waiting.append(pool.submit(prepare, source))


def _prepare(
    source: ImageSource,
    embedder: Embedder,
    known: Callable[[str, str], Known],
) -> _Item:
    try:
        data = source.read()
        content_hash = hashlib.sha256(data).hexdigest()
        verdict = known(source.key, content_hash)
        if verdict is Known.SAME:
            return source.key
        record = Record(source.key, content_hash, _facts(source, data))
        if verdict is Known.MOVED:
            return record
        return _Prepared(record, embedder.prepare(data))
    except ImageError as error:
        return source.key, ImageFailure(error.code, error.message)
    except SourceError as error:
        return source.key, ImageFailure("unreadable", str(error))


def _facts(source: ImageSource, data: bytes) -> PictureFacts:
    width, height = header_size(data) or (None, None)
    return PictureFacts(len(data), source.modified, width, height, source.label)


def _embed(batch: list[_Prepared], embedder: Embedder, outcome: Outcome) -> None:
    if not batch:
        return
    kept = []
    for item, found in zip(batch, embedder.embed([b.value for b in batch]), strict=True):
        if isinstance(found, ImageFailure):
            outcome.failed.append((item.record.key, found))
            continue
        outcome.records.append(item.record)
        if isinstance(found, PictureWindows):
            outcome.windows.append(found)
            kept.append({WINDOW_MEAN: np.asarray(found.whole)})
        else:
            kept.append(dict(found))
    names = list(kept[0]) if kept else []
    outcome.arrays = {name: np.stack([vectors[name] for vectors in kept]) for name in names}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
