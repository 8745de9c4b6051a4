"""The pictures that paths on a command line name: files, folders, globs and packs.

A pack is one file with many pictures: Parquet with a struct column image{bytes,path}, tar or zip.
Every picture has a key that finds it again. Knows no pixels: it reads bytes and decodes nothing.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from amdim_clients.errors import SourceError
from amdim_clients.packs import PACK_READERS, count_in_pack

_ACCEPTED = "jpg jpeg jpe jfif mpo png apng webp gif bmp tif tiff avif"
# Taken along so that a folder of them is reported as unsupported, not silently empty.
_NOT_ACCEPTED = "heic heif jp2 jxl"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in f"{_ACCEPTED} {_NOT_ACCEPTED}".split())


@dataclass(frozen=True)
class ImageSource:
    """One picture that can be read."""

    key: str  # an absolute path, or `<pack>#<place in it>`
    _read: Callable[[], bytes]
    file: Path | None = None  # the picture's own, or the pack it lies in
    label: str | None = None  # where a pack says one

    @property
    def modified(self) -> int | None:
        """When its file was last written, seconds since 1970."""
        with suppress(OSError):
            return int(self.file.stat().st_mtime) if self.file is not None else None
        return None

    def read(self) -> bytes:
        """The bytes of its file.

        Raises:
            SourceError: It cannot be read.
        """
        try:
            return self._read()
        except OSError as error:
            raise SourceError(f"cannot read {self.key}: {error.strerror or error}") from error


def walk_images(paths: Iterable[str | Path]) -> Iterator[ImageSource]:
    """Every picture that the paths name, each once, folders in order of their names.

    Raises:
        SourceError: A path or pattern names nothing, or a pack cannot be read.
    """
    roots = expand_roots(paths)
    # Only roots within one another can name a picture twice; else no key needs to be remembered.
    seen: set[str] | None = set() if _overlap(roots) else None
    for root in roots:
        for source in _walk_root(root):
            if seen is not None:
                if source.key in seen:
                    continue
                seen.add(source.key)
            yield source


def expand_roots(paths: Iterable[str | Path]) -> list[Path]:
    """Absolute files and folders that the paths and patterns name.

    Raises:
        SourceError: One of them names nothing.
    """
    roots: list[Path] = []
    for path in paths:
        if Path(path).exists():
            roots.append(Path(path).resolve())
            continue
        matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []
        if not matches:
            raise SourceError(f"{path} does not exist")
        roots += [Path(match).resolve() for match in matches]
    return roots


def count_images(paths: Iterable[str | Path]) -> int | None:
    """About how many pictures `walk_images` will give, None where that would need a whole read."""
    total = 0
    for root in expand_roots(paths):
        for file in _files(root):
            inside = 1 if isinstance(file, ImageSource) or not _is_pack(file) else _count(file)
            if inside is None:
                return None
            total += inside
    return total


def read_keys(keys: Iterable[str]) -> dict[str, bytes]:
    """The bytes of pictures found again by their keys; those that are gone are left out.

    A pack is read once, however many of its pictures are wanted.
    """
    found: dict[str, bytes] = {}
    wanted_in: dict[Path, set[str]] = {}
    for key in dict.fromkeys(keys):
        pack = _pack_of(key)
        if pack is not None:
            wanted_in.setdefault(pack, set()).add(key)
            continue
        with suppress(OSError):
            found[key] = Path(key).read_bytes()
    for pack, wanted in wanted_in.items():
        for source in _walk_pack(pack):
            if source.key in wanted:
                wanted.discard(source.key)
                with suppress(SourceError):
                    found[source.key] = source.read()
            if not wanted:
                break
    return found


def _overlap(roots: list[Path]) -> bool:
    named = set(roots)
    return len(named) < len(roots) or any(not named.isdisjoint(root.parents) for root in roots)


def _count(pack: Path) -> int | None:
    try:
        return count_in_pack(pack)
    except SourceError:
        return 1  # the walk reports it


def _walk_root(root: Path) -> Iterator[ImageSource]:
    for file in _files(root):
        if isinstance(file, ImageSource):
            yield file
        elif not _is_utf8(file):
            readable = os.fsencode(file).decode("utf-8", "replace")
            yield ImageSource(readable, partial(_fail, f"the name of {readable} is not UTF-8"))
        elif not _is_pack(file):
            yield ImageSource(str(file), file.read_bytes, file)
        elif file == root:
            yield from _walk_pack(file)
        else:
            yield from _walk_pack_or_report(file)


def _walk_pack(pack: Path) -> Iterator[ImageSource]:
    for inner in PACK_READERS[pack.suffix.lower()](pack):
        key = f"{pack}#{inner.place}"
        yield ImageSource(key, partial(_given, key, inner.data), pack, inner.label)


def _walk_pack_or_report(pack: Path) -> Iterator[ImageSource]:
    """The pictures of a pack found in a folder, and itself as a failure where it breaks off."""
    try:
        yield from _walk_pack(pack)
    except SourceError as error:
        yield ImageSource(str(pack), partial(_fail, str(error)))


def _given(key: str, data: bytes | None) -> bytes:
    if data is None:
        raise SourceError(f"cannot read {key}")
    return data


def _fail(message: str) -> bytes:
    raise SourceError(message)


def _files(root: Path) -> Iterator[Path | ImageSource]:
    """A file itself whatever it is called; in folders, what has a picture's or pack's suffix.

    A folder that may not be read comes as a source that fails.
    """
    if not root.is_dir():
        yield root
        return
    unread: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=unread.append):
        yield from (_unreadable(error) for error in unread)
        unread.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if not name.startswith(".") and (suffix in IMAGE_SUFFIXES or suffix in PACK_READERS):
                yield Path(folder, name)
    yield from (_unreadable(error) for error in unread)


def _unreadable(error: OSError) -> ImageSource:
    folder = str(error.filename)
    reason = error.strerror or error
    return ImageSource(folder, partial(_fail, f"cannot read the folder {folder}: {reason}"))


def _is_utf8(file: Path) -> bool:
    """Whether a name is text that an index or a file of vectors can hold."""
    try:
        str(file).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_pack(file: Path) -> bool:
    return file.suffix.lower() in PACK_READERS


def _pack_of(key: str) -> Path | None:
    """The pack a key lies in, None for a plain file; names may hold `#` themselves."""
    at = key.find("#")
    while at >= 0:
        pack = Path(key[:at])
        if _is_pack(pack) and pack.is_file():
            return pack
        at = key.find("#", at + 1)
    return None
