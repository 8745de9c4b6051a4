"""Files that hold many pictures, read one picture at a time in bounded memory.

Knows no pixels and no keys: a reader yields where in the pack a picture lies, and its bytes, or
None where they cannot be read.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from amdim_clients.errors import SourceError

# Rows decoded at a time: pictures of some 100 KB stay far below 100 MB.
_ROWS = 64
_NO_PICTURES: Final = frozenset({".csv", ".json", ".jsonl", ".txt", ".md", ".cls", ".xml", ".py"})

PackReader = Callable[[Path], Iterator[tuple[str, bytes | None]]]


def read_parquet(pack: Path) -> Iterator[tuple[str, bytes | None]]:
    """Rows of a Parquet file in the Hugging Face convention: a struct column image{bytes,path}.

    Raises:
        SourceError: It is no Parquet file or has no such column.
    """
    with _open_parquet(pack) as file:
        row = 0
        for batch in file.iter_batches(_ROWS, columns=["image"]):
            images = batch.column(0)
            paths = images.field("path").to_pylist()
            for data, path in zip(images.field("bytes").to_pylist(), paths, strict=True):
                yield (f"{row}:{path}" if path else f"{row}"), data
                row += 1


def read_tar(pack: Path) -> Iterator[tuple[str, bytes | None]]:
    """Members of a tar file, or of a shard of pairs of picture and label.

    Raises:
        SourceError: It is no tar file.
    """
    try:
        with tarfile.open(pack, "r:*") as archive:
            for member in archive:
                if member.isfile() and _may_be_picture(member.name):
                    file = archive.extractfile(member)
                    yield member.name, file.read() if file is not None else None
    except tarfile.TarError as error:
        raise SourceError(f"{pack} is no tar file") from error


def read_zip(pack: Path) -> Iterator[tuple[str, bytes | None]]:
    """Members of a zip file.

    Raises:
        SourceError: It is no zip file.
    """
    try:
        with zipfile.ZipFile(pack) as archive:
            for name in _zip_names(archive):
                yield name, _read_member(archive, name)
    except zipfile.BadZipFile as error:
        raise SourceError(f"{pack} cannot be read as a zip file") from error


PACK_READERS: Final[Mapping[str, PackReader]] = MappingProxyType(
    {".parquet": read_parquet, ".tar": read_tar, ".zip": read_zip}
)


def count_in_pack(pack: Path) -> int | None:
    """How many pictures a pack holds, None where only reading it all would tell."""
    suffix = pack.suffix.lower()
    if suffix == ".parquet":
        with _open_parquet(pack) as file:
            return int(file.metadata.num_rows)
    if suffix == ".zip":
        try:
            with zipfile.ZipFile(pack) as archive:
                return len(_zip_names(archive))
        except zipfile.BadZipFile as error:
            raise SourceError(f"{pack} cannot be read as a zip file") from error
    return None


def _open_parquet(pack: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pack)
    except (pyarrow.ArrowException, OSError) as error:
        raise SourceError(f"{pack} is no Parquet file") from error
    schema = file.schema_arrow
    column = schema.field("image").type if "image" in schema.names else None
    if column is None or not pyarrow.types.is_struct(column):
        file.close()
        raise SourceError(f"{pack} has no struct column image{{bytes,path}}")
    if {"bytes", "path"} - {column.field(index).name for index in range(column.num_fields)}:
        file.close()
        raise SourceError(f"{pack}: its image column is not image{{bytes,path}}")
    return file


def _zip_names(archive: zipfile.ZipFile) -> list[str]:
    return [
        item.filename
        for item in archive.infolist()
        if not item.is_dir() and _may_be_picture(item.filename)
    ]


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes | None:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error):
        return None  # broken, encrypted or packed in an unknown way: the others may be sound


def _may_be_picture(name: str) -> bool:
    inner = Path(name)
    return inner.suffix.lower() not in _NO_PICTURES and not inner.name.startswith(".")
