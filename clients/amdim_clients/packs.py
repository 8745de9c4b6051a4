"""Files that hold many pictures, read one picture at a time in bounded memory.

Knows no pixels and no keys: a reader yields where in the pack a picture lies, its bytes, or None
where they cannot be read, and its label where the pack says one.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, groupby, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from amdim_clients.errors import SourceError

# Rows decoded at a time: pictures of some 100 KB stay far below 100 MB.
_ROWS = 64
_NO_PICTURES: Final = frozenset({".csv", ".json", ".jsonl", ".txt", ".md", ".cls", ".xml", ".py"})

# Files of one sample held at once, lest a tar of files without dots be one endless sample.
_SAMPLE_FILES: Final = 8
_CLASS: Final = ".cls"  # the label beside a picture in a WebDataset shard


class PackedPicture(NamedTuple):
    """One picture of a pack."""

    place: str
    data: bytes | None  # None where it cannot be read
    label: str | None = None


PackReader = Callable[[Path], Iterator[PackedPicture]]


def read_parquet(pack: Path) -> Iterator[PackedPicture]:
    """Rows of a Parquet file in the Hugging Face convention: a struct column image{bytes,path}.

    Labels come from a column `label`, by name where the file's metadata has names.

    Raises:
        SourceError: It is no Parquet file or has no such column.
    """
    with _open_parquet(pack) as file:
        row = 0
        name_of = _label_names(file.schema_arrow)
        columns = ["image", *(["label"] if name_of else [])]
        for batch in file.iter_batches(_ROWS, columns=columns):
            images = batch.column("image")
            paths = images.field("path").to_pylist()
            labels = batch.column("label").to_pylist() if name_of else [None] * len(paths)
            contents = images.field("bytes").to_pylist()
            for data, path, label in zip(contents, paths, labels, strict=True):
                place = f"{row}:{path}" if path else f"{row}"
                yield PackedPicture(place, data, name_of(label) if name_of else None)
                row += 1


def read_tar(pack: Path) -> Iterator[PackedPicture]:
    """Members of a tar file, or of a WebDataset shard, where `x.cls` holds the label of `x.jpg`.

    Raises:
        SourceError: It is no tar file.
    """
    try:
        with tarfile.open(pack, "r:*") as archive:
            yield from _labelled(_members(archive))
    except tarfile.TarError as error:
        raise SourceError(f"{pack} is no tar file") from error


def read_zip(pack: Path) -> Iterator[PackedPicture]:
    """Members of a zip file.

    Raises:
        SourceError: It is no zip file.
    """
    try:
        with zipfile.ZipFile(pack) as archive:
            for name in _zip_names(archive):
                yield PackedPicture(name, _read_member(archive, name))
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


def _label_names(schema: Any) -> Callable[[Any], str | None] | None:
    """How the values of a column `label` are told, None where there is no such column."""
    import pyarrow as pa

    if "label" not in schema.names:
        return None
    kind = schema.field("label").type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind)):
        return None
    names = _names_in(schema.metadata or {})

    def told(label: Any) -> str | None:
        if label is None:
            return None
        return names[label] if isinstance(label, int) and 0 <= label < len(names) else str(label)

    return told


def _names_in(metadata: Mapping[bytes, bytes]) -> list[str]:
    try:
        if b"label_names" in metadata:
            return [str(name) for name in json.loads(metadata[b"label_names"])]
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes | None]]:
    for member in archive:
        wanted = _may_be_picture(member.name) or member.name.lower().endswith(_CLASS)
        if member.isfile() and wanted:
            file = archive.extractfile(member)
            yield member.name, file.read() if file is not None else None


def _labelled(members: Iterator[tuple[str, bytes | None]]) -> Iterator[PackedPicture]:
    """Pictures with the label that lies beside them: members of one sample follow each other."""
    for _, sample in groupby(members, key=lambda member: _sample(member[0])):
        files = list(islice(sample, _SAMPLE_FILES))
        label = next((data for name, data in files if data and name.lower().endswith(_CLASS)), None)
        told = label.decode("utf-8", "replace").strip() if label else None
        for name, data in chain(files, sample):
            if not name.lower().endswith(_CLASS):
                yield PackedPicture(name, data, told)


def _sample(name: str) -> str:
    """What the files of one sample share: all before the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


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
