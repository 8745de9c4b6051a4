"""Brings an index up to date with folders and packs: new and changed in, deleted out.

What has not changed, by key and content, is not encoded again. A run that is cut off leaves an
index that lacks pictures but holds none halfway; the next run goes on. Knows no storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amdim_clients.embedders import Embedder
from amdim_clients.errors import SourceError
from amdim_clients.inputs import ImageFailure
from amdim_clients.neighbors import NeighborIndex
from amdim_clients.pipeline import Outcome, Record, embed_sources
from amdim_clients.walk import expand_roots, walk_images

# Rows of one transaction: each leaves a file behind until the index is tuned.
_ROWS_PER_ADD = 2048

# Called with an outcome's counts: pictures finished, of them failed.
Progress = Callable[[int, int], None]


@dataclass
class IndexReport:
    """What one run did."""

    added: int = 0  # new or changed
    unchanged: int = 0
    removed: int = 0
    failed: list[tuple[str, ImageFailure]] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """Pictures that were there."""
        return self.added + self.unchanged + len(self.failed)


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
    pack that breaks off, keeps what it had.

    Raises:
        SourceError: A path names nothing, or all of them together no picture.
        DigestMismatchError: The embedder's vectors do not belong into the index.
    """
    space = embedder.origin.space(output)
    index.space.check(space)
    roots = [str(root) for root in expand_roots(paths)]
    known: dict[str, str] = {}
    for root in roots:
        known.update(index.content_hashes(root))
    writer = _Writer(index, embedder, output)
    report, kept = IndexReport(), set[str]()
    for outcome in embed_sources(
        walk_images(paths),
        embedder,
        workers=workers,
        is_known=lambda key, content_hash: known.get(key) == content_hash,
    ):
        writer.add(outcome)
        _count(outcome, report, kept)
        progress(outcome.count, len(outcome.failed))
    writer.flush()
    if not report.seen:
        raise SourceError(f"no pictures in {', '.join(roots)}")
    kept |= _spared(known, report.failed)
    gone = [key for key in known if key not in kept]
    index.remove(gone)
    report.removed = len(gone)
    return report


class _Writer:
    """Gathers rows into transactions of a useful size."""

    def __init__(self, index: NeighborIndex, embedder: Embedder, output: str) -> None:
        self._index = index
        self._origin = embedder.origin
        self._output = output
        self._records: list[Record] = []
        self._vectors: list[npt.NDArray[np.float32]] = []

    def add(self, outcome: Outcome) -> None:
        if outcome.records:
            self._records += outcome.records
            self._vectors.append(outcome.arrays[self._output])
        if len(self._records) >= _ROWS_PER_ADD:
            self.flush()

    def flush(self) -> None:
        if not self._records:
            return
        self._index.add(
            self._records,
            np.concatenate(self._vectors),
            space=self._origin.space(self._output),
            artifact_digest=self._origin.artifact_digest,
        )
        self._records, self._vectors = [], []


def _count(outcome: Outcome, report: IndexReport, kept: set[str]) -> None:
    kept.update(record.key for record in outcome.records)
    kept.update(outcome.unchanged)
    report.added += len(outcome.records)
    report.unchanged += len(outcome.unchanged)
    report.failed += outcome.failed


def _spared(known: Iterable[str], failed: Sequence[tuple[str, ImageFailure]]) -> set[str]:
    """The keys that an unreadable file or a broken pack still answers for."""
    unreadable = {key for key, failure in failed if failure.code == "unreadable"}
    if not unreadable:
        return set()
    return {key for key in known if not unreadable.isdisjoint(_enclosing(key))}


def _enclosing(key: str) -> Iterator[str]:
    """The key itself and every pack it may lie in; names may hold `#` themselves."""
    yield key
    at = key.find("#")
    while at >= 0:
        yield key[:at]
        at = key.find("#", at + 1)
