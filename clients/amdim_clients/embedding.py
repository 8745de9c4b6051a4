"""Vectors of folders and packs, into a file. Knows no formats and no engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amdim_clients.embedders import Embedder
from amdim_clients.errors import SourceError
from amdim_clients.inputs import ImageFailure
from amdim_clients.pipeline import embed_sources
from amdim_clients.vector_files import open_vector_file
from amdim_clients.walk import walk_images


@dataclass
class EmbedReport:
    """What one run did."""

    written: int = 0  # rows
    failed: list[tuple[str, ImageFailure]] = field(default_factory=list)


class _NothingWritten(Exception):
    pass


def embed_to_file(
    paths: Sequence[str | Path],
    embedder: Embedder,
    target: Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, failed: None,
) -> EmbedReport:
    """Write one row for each picture that the paths name; without a single one, no file.

    Args:
        paths: Files, folders, patterns or packs.
        embedder: What makes the vectors.
        target: Its suffix says the format.
        workers: Threads that read and decode.
        progress: Called with counts of pictures finished, and of them failed.

    Raises:
        SourceError: A path names nothing, all together no picture, or `target` is no good.
    """
    report = EmbedReport()
    try:
        with open_vector_file(target, embedder.origin) as writer:
            for outcome in embed_sources(walk_images(paths), embedder, workers=workers):
                writer.write(outcome)
                report.written += len(outcome.records)
                report.failed += outcome.failed
                progress(outcome.count, len(outcome.failed))
            if not report.written:
                raise _NothingWritten
    except _NothingWritten:
        if not report.failed:
            raise SourceError(f"no pictures in {', '.join(map(str, paths))}") from None
    return report
