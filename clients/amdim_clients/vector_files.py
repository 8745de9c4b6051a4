"""Vectors on disk: Parquet, NumPy and safetensors, written as they come and whole or not at all.

Knows no pictures: it writes keys, content hashes and arrays, and where they come from.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from amdim_clients.atomic import written_aside
from amdim_clients.errors import SourceError
from amdim_clients.pipeline import Outcome
from amdim_clients.space import VectorOrigin

SUFFIXES = (".parquet", ".npy", ".safetensors", ".faiss")
_ONE_OUTPUT = (".npy", ".faiss")
_FAISS_ROWS = 65_536  # added at a time


class VectorWriter(Protocol):
    """Takes outcomes one after the other."""

    def write(self, outcome: Outcome) -> None:
        """Append the records and vectors of an outcome."""


@contextmanager
def open_vector_file(target: Path, origin: VectorOrigin) -> Iterator[VectorWriter]:
    """A writer of `target`, which appears when the block ends well.

    `.parquet` has columns path, content_hash and one per output. `.npy` holds one output,
    `.safetensors` any, and `.faiss` an index of one; beside these, `<target>.json` says path and
    content hash of every row.

    Raises:
        SourceError: The suffix is not known, or the file cannot be written.
    """
    check_suffix(target)
    check_outputs(target, origin)
    with written_aside(target) as aside, ExitStack() as stack:
        if target.suffix == ".parquet":
            yield stack.enter_context(ParquetWriter(aside, origin))
            return
        rows_aside = stack.enter_context(written_aside(target.with_name(target.name + ".json")))
        writer = stack.enter_context(_RawWriter(aside, origin))
        yield writer
        writer.finish(target.suffix)
        document = {**origin.to_metadata(), "rows": writer.rows}
        rows_aside.write_text(json.dumps(document, indent=1), "utf-8")


def check_suffix(target: Path) -> None:
    """Refuse early what could not be written at the end.

    Raises:
        SourceError: The suffix is not known.
    """
    if target.suffix not in SUFFIXES:
        raise SourceError(f"{target.name} must end in one of {', '.join(SUFFIXES)}")


def check_outputs(target: Path, origin: VectorOrigin) -> None:
    """Refuse outputs that a format cannot hold.

    Raises:
        SourceError: They are too many, or of the wrong shape.
    """
    if target.suffix in _ONE_OUTPUT and len(origin.outputs) != 1:
        raise SourceError(
            f"a {target.suffix} file holds one output; use .parquet or .safetensors for several"
        )
    if target.suffix == ".faiss" and any(len(shape) != 1 for shape in origin.outputs.values()):
        raise SourceError("a .faiss file holds one vector a picture, not a grid of them")


class ParquetWriter:
    """Rows of a Parquet file, appended as they come."""

    def __init__(self, path: Path, origin: VectorOrigin) -> None:
        """Begin a file at `path`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa = pa
        self._origin = origin
        fields = [pa.field("path", pa.string()), pa.field("content_hash", pa.string())]
        for name, shape in origin.outputs.items():
            fields.append(pa.field(name, pa.list_(pa.float32(), math.prod(shape))))
        self._schema = pa.schema(fields, metadata=origin.to_metadata())
        # Vectors hardly compress, and dictionaries of floats only cost time.
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="zstd", use_dictionary=["path", "content_hash"]
        )

    def write(self, outcome: Outcome) -> None:
        """Append the records and vectors of an outcome."""
        if not outcome.records:
            return
        pa = self._pa
        columns: list[Any] = [
            pa.array([record.key for record in outcome.records], pa.string()),
            pa.array([record.content_hash for record in outcome.records], pa.string()),
        ]
        for name, shape in self._origin.outputs.items():
            flat = pa.array(np.ascontiguousarray(outcome.arrays[name]).ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, math.prod(shape)))
        self._writer.write_table(pa.table(columns, schema=self._schema))

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()


class _RawWriter:
    """Spools every output to a file of its own, and puts a header before them at the end."""

    def __init__(self, path: Path, origin: VectorOrigin) -> None:
        self.rows: list[dict[str, str]] = []
        self._path = path
        self._origin = origin
        self._spools: dict[str, IO[bytes]] = {}

    def write(self, outcome: Outcome) -> None:
        for record in outcome.records:
            self.rows.append({"path": record.key, "content_hash": record.content_hash})
        if outcome.records:
            for name, spool in self._spools.items():
                spool.write(np.ascontiguousarray(outcome.arrays[name], "<f4").tobytes())

    def finish(self, suffix: str) -> None:
        if suffix == ".faiss":
            self._write_faiss()
            return
        with self._path.open("wb") as file:
            if suffix == ".npy":
                (shape,) = self._origin.outputs.values()
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(self.rows), *shape)}
                np.lib.format.write_array_header_1_0(file, header)
            else:
                file.write(self._safetensors_header())
            for spool in self._spools.values():
                spool.seek(0)
                shutil.copyfileobj(spool, file, 1 << 20)

    def _write_faiss(self) -> None:
        """An exact index: inner products of unit vectors, else distances; row n is id n."""
        import faiss

        ((name, (dim,)),) = self._origin.outputs.items()
        index = faiss.IndexFlatIP(dim) if self._origin.normalized else faiss.IndexFlatL2(dim)
        spool = self._spools[name]
        spool.seek(0)
        while data := spool.read(4 * dim * _FAISS_ROWS):
            index.add(np.frombuffer(data, "<f4").reshape(-1, dim))
        faiss.write_index(index, str(self._path))

    def __enter__(self) -> _RawWriter:
        for name in self._origin.outputs:
            self._spools[name] = self._spool_path(name).open("w+b")
        return self

    def __exit__(self, *exception: object) -> None:
        for name, spool in self._spools.items():
            spool.close()
            self._spool_path(name).unlink(missing_ok=True)

    def _spool_path(self, name: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{name}")

    def _safetensors_header(self) -> bytes:
        header: dict[str, Any] = {"__metadata__": self._origin.to_metadata()}
        offset = 0
        for name, shape in self._origin.outputs.items():
            end = offset + 4 * len(self.rows) * math.prod(shape)
            header[name] = {
                "dtype": "F32",
                "shape": [len(self.rows), *shape],
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format wants the data aligned
        return len(text).to_bytes(8, "little") + text
