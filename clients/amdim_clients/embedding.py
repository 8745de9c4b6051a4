"""Vectors of folders and packs, into a file. Knows no formats and no engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amdim_clients.embedders import Embedder
from amdim_clients.errors import SourceError
from amdim_clients.inputs import ImageFailure
from amdim_clients.known import KnownRows
from amdim_clients.partial import PartialRun
from amdim_clients.pipeline import Known, embed_sources
from amdim_clients.vector_files import check_outputs, check_suffix, open_vector_file
from amdim_clients.walk import walk_images


@dataclass
class EmbedReport:
    """What one run did."""

    written: int = 0  # rows
    resumed: int = 0  # of them from an earlier run that was cut off
    failed: list[tuple[str, ImageFailure]] = field(default_factory=list)


def embed_to_file(
    paths: Sequence[str | Path],
    embedder: Embedder,
    target: Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, failed: None,
) -> EmbedReport:
    """Write one row for each picture that the paths name; without a single one, no file.

    A run that is cut off leaves its vectors beside `target`; the same call goes on from there.

    Args:
        paths: Files, folders, patterns or packs.
        embedder: What makes the vectors.
        target: Its suffix says the format.
        workers: Threads that read and decode.
        progress: Called with counts of pictures finished, and of them failed.

    Raises:
        SourceError: A path names nothing, all together no picture, or `target` is no good.
    """
    check_suffix(target)
    check_outputs(target, embedder.origin)
    partial = PartialRun(target, embedder.origin)
    known = KnownRows(partial.rows(), with_windows=False)
    report, seen = EmbedReport(), 0

    def verdict(key: str, content_hash: str) -> Known:
        found = known.verdict(key, content_hash)
        return found if found is Known.SAME else Known.NEW

    try:
        for outcome in embed_sources(walk_images(paths), embedder, workers=workers, known=verdict):
            partial.write(outcome)
            for key in outcome.unchanged:
                known.meet(key)
            report.resumed += len(outcome.unchanged)
            report.failed += outcome.failed
            seen += outcome.count
            progress(outcome.count, len(outcome.failed))
    finally:
        partial.flush()
        if not partial.has_rows:
            partial.remove()
    if not seen:
        raise SourceError(f"no pictures in {', '.join(map(str, paths))}")
    if partial.has_rows:
        with open_vector_file(target, embedder.origin) as writer:
            for outcome in partial.outcomes(known.is_met):
                writer.write(outcome)
                report.written += len(outcome.records)
        partial.remove()
    return report
