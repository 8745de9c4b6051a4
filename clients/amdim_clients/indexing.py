"""Brings an index up to date with folders and packs: new and changed in, deleted out.

What has not changed, by key and content, is not encoded again. A run that is cut off leaves an
index that lacks pictures but holds none halfway; the next run goes on. Knows no storage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amdim_clients.embedders import Embedder
from amdim_clients.errors import IndexStoreError, SourceError
from amdim_clients.inputs import ImageFailure
from amdim_clients.keys import roots_of
from amdim_clients.known import KnownRows
from amdim_clients.neighbors import NeighborIndex, StoredRow
from amdim_clients.pipeline import Outcome, Record, embed_sources
from amdim_clients.walk import expand_roots, walk_images
from amdim_clients.window_rows import PictureWindows

# Rows of one transaction: each leaves a file behind until the index is tuned.
_ROWS_PER_ADD = 2048
# The most that a killed run loses; an interrupted one loses nothing.
_SECONDS_PER_ADD = 20.0

# Called with an outcome's counts: pictures finished, of them failed.
Progress = Callable[[int, int], None]


@dataclass
class IndexReport:
    """What one run did."""

    added: int = 0  # new or changed
    moved: int = 0  # known content under a new name: not encoded again
    unchanged: int = 0
    removed: int = 0
    windows: int = 0  # of the added pictures
    failed: list[tuple[str, ImageFailure]] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """Pictures that were there."""
        return self.added + self.moved + self.unchanged + len(self.failed)


def update_index(
    paths: Sequence[str | Path],
    embedder: Embedder,
    index: NeighborIndex,
    *,
    output: str,
    workers: int | None = None,
    progress: Progress = lambda done, failed: None,
) -> IndexReport:
    """Make the index hold what the paths hold now; rows of other paths stay as they are.

    A picture that is no longer a picture loses its row; one that cannot be read just now, or a
    pack that breaks off, keeps what it had. Where the index holds windows, they follow too.

    Args:
        paths: Files, folders, patterns or packs.
        embedder: Makes the vectors, and the windows where the index holds some.
        index: What is brought up to date.
        output: Of the embedder.
        workers: Threads that read and decode.
        progress: Called with counts of pictures finished, and of them failed.

    Raises:
        SourceError: A path names nothing, or all of them together no picture.
        DigestMismatchError: The embedder's vectors do not belong into the index.
        IndexStoreError: The store failed, or holds other windows than the embedder gives.
    """
    space = embedder.origin.space(output)
    index.space.check(space)
    if embedder.plan != index.plan:
        raise IndexStoreError("the windows of the index and those to be made are not the same")
    roots = [str(root) for root in expand_roots(paths)]
    index.repair()
    known = KnownRows(_rows(index, roots), with_windows=index.plan is not None)
    writer = _Writer(index, embedder, output)
    report = IndexReport()
    try:
        for outcome in embed_sources(
            walk_images(paths), embedder, workers=workers, known=known.verdict
        ):
            writer.add(outcome)
            _count(outcome, report, known)
            progress(outcome.count, len(outcome.failed))
    finally:
        writer.flush()
    if not report.seen:
        raise SourceError(f"no pictures in {', '.join(roots)}")
    gone = list(_gone(known, _rows(index, roots), report.failed))
    index.remove(gone)
    report.removed = len(gone)
    return report


class _Writer:
    """Gathers rows into transactions of a useful size."""

    def __init__(self, index: NeighborIndex, embedder: Embedder, output: str) -> None:
        self._index = index
        self._origin = embedder.origin
        self._output = output
        self._with_windows = index.plan is not None
        self._clear()

    def add(self, outcome: Outcome) -> None:
        if outcome.records:
            self._records += outcome.records
            self._vectors.append(outcome.arrays[self._output])
            self._windows += outcome.windows
        self._moved += outcome.moved
        waiting = len(self._records) + len(self._moved)
        if waiting >= _ROWS_PER_ADD or time.monotonic() - self._since > _SECONDS_PER_ADD:
            self.flush()

    def flush(self) -> None:
        if self._moved:
            self._follow_moves()
        if self._records:
            self._index.add(
                self._records,
                np.concatenate(self._vectors),
                space=self._origin.space(self._output),
                artifact_digest=self._origin.artifact_digest,
                windows=self._windows if self._with_windows else None,
            )
        self._clear()

    def _follow_moves(self) -> None:
        """Give pictures whose content is known under another name the vectors it has there."""
        holders = self._index.holders(record.content_hash for record in self._moved)
        vectors = self._index.vectors(holders.values())
        windows = self._index.windows(holders.values()) if self._with_windows else {}
        for record in self._moved:
            holder = holders.get(record.content_hash, "")
            if holder not in vectors or (self._with_windows and holder not in windows):
                raise IndexStoreError(
                    "another process changed the index meanwhile: run the command again"
                )
            self._records.append(record)
            self._vectors.append(vectors[holder][None])
            if self._with_windows:
                self._windows.append(windows[holder])

    def _clear(self) -> None:
        self._records: list[Record] = []
        self._moved: list[Record] = []
        self._vectors: list[npt.NDArray[np.float32]] = []
        self._windows: list[PictureWindows] = []
        self._since = time.monotonic()


def _rows(index: NeighborIndex, roots: Sequence[str]) -> Iterator[StoredRow]:
    for root in roots:
        yield from index.rows(root)


def _count(outcome: Outcome, report: IndexReport, known: KnownRows) -> None:
    for record in (*outcome.records, *outcome.moved):
        known.meet(record.key)
    for key in outcome.unchanged:
        known.meet(key)
    report.added += len(outcome.records)
    report.moved += len(outcome.moved)
    report.unchanged += len(outcome.unchanged)
    report.windows += sum(len(windows) for windows in outcome.windows)
    report.failed += outcome.failed


def _gone(
    known: KnownRows, rows: Iterable[StoredRow], failed: Sequence[tuple[str, ImageFailure]]
) -> Iterator[str]:
    """The keys that are there no more; an unreadable file, folder or pack still answers for its."""
    unreadable = {key for key, failure in failed if failure.code == "unreadable"}
    for key in dict.fromkeys(known.missed(rows)):
        if not unreadable or unreadable.isdisjoint(roots_of(key)):
            yield key
