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
from typing import Any

import numpy as np
import numpy.typing as npt

from amdim_clients.embedders import Embedder
from amdim_clients.errors import ImageError, SourceError
from amdim_clients.inputs import ImageFailure
from amdim_clients.walk import ImageSource


@dataclass(frozen=True)
class Record:
    """Which picture a vector belongs to."""

    key: str
    content_hash: str  # sha256 of the file's bytes, hexadecimal


@dataclass
class Outcome:
    """What became of the pictures since the last outcome, every one in exactly one list."""

    records: list[Record] = field(default_factory=list)
    arrays: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)  # rows as `records`
    unchanged: list[str] = field(default_factory=list)  # keys
    failed: list[tuple[str, ImageFailure]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many pictures it speaks of."""
        return len(self.records) + len(self.unchanged) + len(self.failed)


@dataclass(frozen=True)
class _Prepared:
    record: Record
    value: Any


def embed_sources(
    sources: Iterable[ImageSource],
    embedder: Embedder,
    *,
    workers: int | None = None,
    is_known: Callable[[str, str], bool] = lambda key, content_hash: False,
) -> Generator[Outcome, None, None]:
    """Vectors of all sources, a batch at a time, order kept among those that have one.

    Args:
        sources: Read lazily, at most the embedder's window ahead.
        embedder: Called from the calling thread only.
        workers: Threads that read and decode; default one per core.
        is_known: Whether the picture `key` with that content needs no vector any more.
    """
    size = embedder.batch_size

    def prepare(source: ImageSource) -> _Prepared | str | tuple[str, ImageFailure]:
        return _prepare(source, embedder, is_known)

    with ThreadPoolExecutor(workers or _cores(), "amdim-decode") as pool:
        waiting: deque[Future[_Prepared | str | tuple[str, ImageFailure]]] = deque()
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
    source: ImageSource, embedder: Embedder, is_known: Callable[[str, str], bool]
) -> _Prepared | str | tuple[str, ImageFailure]:
    try:
        data = source.read()
        content_hash = hashlib.sha256(data).hexdigest()
        if is_known(source.key, content_hash):
            return source.key
        record = Record(source.key, content_hash)
        return _Prepared(record, embedder.prepare(data))
    except ImageError as error:
        return source.key, ImageFailure(error.code, error.message)
    except SourceError as error:
        return source.key, ImageFailure("unreadable", str(error))


def _embed(batch: list[_Prepared], embedder: Embedder, outcome: Outcome) -> None:
    if not batch:
        return
    kept = []
    for item, vectors in zip(batch, embedder.embed([b.value for b in batch]), strict=True):
        if isinstance(vectors, ImageFailure):
            outcome.failed.append((item.record.key, vectors))
        else:
            outcome.records.append(item.record)
            kept.append(vectors)
    names = list(kept[0]) if kept else []
    outcome.arrays = {name: np.stack([vectors[name] for vectors in kept]) for name in names}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
