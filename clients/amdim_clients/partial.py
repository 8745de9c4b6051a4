"""Vectors on their way to a file: kept in chunks beside it, so that a run that is cut off goes on.

Knows no pictures and no formats but its own chunks.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from amdim_clients.atomic import written_aside
from amdim_clients.errors import SourceError
from amdim_clients.neighbors import StoredRow
from amdim_clients.pipeline import Outcome, Record
from amdim_clients.space import VectorOrigin

_ORIGIN: Final = "origin.json"
_ROWS: Final = 4096  # of a chunk
_SECONDS: Final = 30.0  # and the most that a killed run loses


class PartialRun:
    """The chunks of a run, those of an earlier one first."""

    def __init__(self, target: Path, origin: VectorOrigin) -> None:
        """Take up what an earlier run of the same model left beside `target`, or start anew.

        Raises:
            SourceError: The folder of `target` does not exist or cannot be written to.
        """
        if not target.parent.is_dir():
            raise SourceError(f"the folder of {target} does not exist")
        self._folder = target.with_name(f".{target.name}.partial")
        self._origin = origin
        self._parts: list[Outcome] = []
        self._rows = 0
        self._since = time.monotonic()
        text = json.dumps(origin.to_metadata(), sort_keys=True)
        place = self._folder / _ORIGIN
        try:
            if not place.is_file() or place.read_text("utf-8") != text:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir()
                with written_aside(place) as aside:
                    aside.write_text(text, "utf-8")
        except OSError as error:
            raise SourceError(f"cannot write beside {target}: {error.strerror or error}") from error
        self._earlier = len(self._chunks())

    def rows(self) -> Iterator[StoredRow]:
        """What an earlier run had done."""
        for chunk in self._chunks()[: self._earlier]:
            for record in _records(_read(chunk, ["path", "content_hash"])):
                yield StoredRow(record.key, record.content_hash, None)

    def write(self, outcome: Outcome) -> None:
        """Keep the vectors of an outcome; in chunks, so a little may wait in memory."""
        if outcome.records:
            self._parts.append(outcome)
            self._rows += len(outcome.records)
        if self._rows >= _ROWS or time.monotonic() - self._since > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put what waits on disk."""
        from amdim_clients.vector_files import ParquetWriter

        if not self._rows:
            return
        chunk = self._folder / f"{len(self._chunks()):06}.parquet"
        with written_aside(chunk) as aside, ParquetWriter(aside, self._origin) as writer:
            for part in self._parts:
                writer.write(part)
        self._parts, self._rows, self._since = [], 0, time.monotonic()

    def outcomes(self, keep: Callable[[str, str], bool]) -> Iterator[Outcome]:
        """All that was done, chunk by chunk.

        Args:
            keep: Whether a picture that an earlier run did is still what it was then.
        """
        self.flush()
        for number, chunk in enumerate(self._chunks()):
            table = _read(chunk)
            records = _records(table)
            kept = [
                at
                for at, record in enumerate(records)
                if number >= self._earlier or keep(record.key, record.content_hash)
            ]
            arrays = {
                name: _array(table[name], shape)[kept]
                for name, shape in self._origin.outputs.items()
            }
            if kept:
                yield Outcome([records[at] for at in kept], arrays)

    def remove(self) -> None:
        """Delete the chunks."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def has_rows(self) -> bool:
        """Whether a later run would have something to go on from."""
        return bool(self._chunks())

    def _chunks(self) -> list[Path]:
        return sorted(self._folder.glob("*.parquet"))


def _read(chunk: Path, columns: list[str] | None = None) -> Any:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        return pq.read_table(chunk, columns=columns)
    except (OSError, pyarrow.ArrowException) as error:
        raise SourceError(f"{chunk} is damaged: delete its folder and run again") from error


def _records(table: Any) -> list[Record]:
    pairs = zip(table["path"].to_pylist(), table["content_hash"].to_pylist(), strict=True)
    return [Record(key, content_hash) for key, content_hash in pairs]


def _array(column: Any, shape: tuple[int, ...]) -> Any:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(-1, *shape)
