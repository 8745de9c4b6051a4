"""Decoded pictures on disk, mapped rather than read: data larger than memory, decoded once.

A cache is a folder named for what it holds: the sources' files, the splits and the rule that made
pixels of pictures. It is written aside and renamed, so there is a whole one or none. Knows no
augmentation and no training.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amdim_clients.images import Preprocess
from amdim_training.errors import DataError
from amdim_training.sources import Pixels, source_root

FORMAT = 1
PIXELS_FILE = "pixels.bin"
LABELS_FILE = "labels.bin"
FACTS_FILE = "facts.json"
_HASHED_BYTES = 1 << 30
"""A single file up to here is known by its content; more by names, sizes and times."""

Decoded = tuple[str, Pixels | None, int]
"""A picture's name, its pixels or None where it could not be decoded, and its label."""
Cached = tuple[Pixels, np.ndarray[Any, np.dtype[np.int64]], tuple[str, ...]]


def cache_key(sources: Sequence[str | Path], preprocess: Preprocess, splits: Sequence[str]) -> str:
    """Returns the name of what these sources hold, as 16 hexadecimal digits.

    Raises:
        DataError: A source is missing.
    """
    facts = {
        "format": FORMAT,
        "preprocess": preprocess.digest,
        "splits": sorted(splits),
        "sources": [_fingerprint(source) for source in sources],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def open_cache(folder: Path) -> Cached | None:
    """Returns mapped pixels (N, P, P, 3), labels (N,) and skipped names; None where there is none.

    Raises:
        DataError: The cache is cut off or unreadable; the message says to delete it.
    """
    if not folder.exists():
        return None
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        count, side = int(facts["count"]), int(facts["side"])
        labels = np.fromfile(folder / LABELS_FILE, np.int64)
        # copy on write: torch wants arrays that may be written to, and the file stays as it is
        flat = np.memmap(folder / PIXELS_FILE, np.uint8, "c")
        if len(labels) != count or len(flat) != count * side * side * 3:
            raise ValueError(f"it says {count} pictures of {side} px and holds {len(flat)} bytes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is no whole cache ({error}); delete it") from error
    return flat.reshape(count, side, side, 3), labels, tuple(facts["skipped"])


def write_cache(folder: Path, rows: Iterable[Decoded], side: int) -> None:
    """Writes decoded pictures as they come: no more than one at a time is held here.

    Raises:
        DataError: No picture could be decoded, or the disk refused; nothing is left behind.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    labels: list[int] = []
    skipped: list[str] = []
    try:
        aside.mkdir(parents=True)
        with (aside / PIXELS_FILE).open("wb") as file:
            for name, picture, label in rows:
                if picture is None:
                    skipped.append(name)
                    continue
                file.write(np.ascontiguousarray(picture).data)
                labels.append(label)
        if labels:
            np.asarray(labels, np.int64).tofile(aside / LABELS_FILE)
            facts = {"format": FORMAT, "count": len(labels), "side": side, "skipped": skipped}
            (aside / FACTS_FILE).write_text(json.dumps(facts) + "\n", encoding="utf-8")
            _take_place(aside, folder)
    except OSError as error:
        raise DataError(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _take_place(aside: Path, folder: Path) -> None:
    """Renames a whole cache into place; another process may have been first with the same."""
    try:
        aside.rename(folder)
    except OSError:
        if not (folder / FACTS_FILE).is_file():
            raise


def _fingerprint(source: str | Path) -> list[Any]:
    """Returns what tells a source from another or from itself changed."""
    root = source_root(source)
    if root.is_file() and root.stat().st_size <= _HASHED_BYTES:
        with root.open("rb") as file:
            return ["content", hashlib.file_digest(file, "sha256").hexdigest()]
    listing = hashlib.sha256()
    for line in _listing(root):
        listing.update(line.encode("utf-8", "surrogateescape"))
    # the format decides which files count and as what: stl10:DIR, stl10-labelled:DIR, DIR
    return ["listing", str(source).partition(":")[0], listing.hexdigest()]


def _listing(root: Path) -> Iterator[str]:
    """Yields every file below a folder, or the file itself, with size and time of change."""
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    for path in files:
        status = path.stat()
        yield f"{path.relative_to(root.parent)}\0{status.st_size}\0{status.st_mtime_ns}\n"
