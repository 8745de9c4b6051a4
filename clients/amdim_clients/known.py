"""What an index holds below some folders, small enough for a million pictures.

Sixteen bytes a picture: halves of two hashes, sorted. Knows no storage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from amdim_clients.neighbors import StoredRow
from amdim_clients.pipeline import Known

_NOTHING: Final = 0  # no content at all: what is held must be encoded anew


class KnownRows:
    """Tells new pictures from known and moved ones, and remembers which were met."""

    def __init__(self, rows: Iterable[StoredRow], *, with_windows: bool) -> None:
        """Read the rows once; those without windows are new where windows are wanted."""
        packed = np.fromiter(
            (
                (
                    _half_of_key(row.key),
                    _NOTHING
                    if with_windows and row.windows is None
                    else _half_of_content(row.content_hash),
                )
                for row in rows
            ),
            dtype=[("key", np.uint64), ("content", np.uint64)],
        )
        packed.sort(order="key")
        self._keys: npt.NDArray[np.uint64] = np.ascontiguousarray(packed["key"])
        self._contents: npt.NDArray[np.uint64] = np.ascontiguousarray(packed["content"])
        self._by_content = np.sort(self._contents[self._contents != _NOTHING])
        self._met = np.zeros(len(self._keys), np.bool_)

    def verdict(self, key: str, content_hash: str) -> Known:
        """What is to be done about a picture; safe to call from several threads."""
        content = np.uint64(_half_of_content(content_hash))
        at = self._place(key)
        if at is not None and self._contents[at] == content:
            return Known.SAME
        found = np.searchsorted(self._by_content, content)
        if found < len(self._by_content) and self._by_content[found] == content:
            return Known.MOVED
        return Known.NEW

    def meet(self, key: str) -> None:
        """Remember that the picture is still there."""
        at = self._place(key)
        if at is not None:
            self._met[at] = True

    def is_met(self, key: str, content_hash: str) -> bool:
        """Whether the picture was met, with this content."""
        at = self._place(key)
        if at is None or self.verdict(key, content_hash) is not Known.SAME:
            return False
        return bool(self._met[at])

    def missed(self, rows: Iterable[StoredRow]) -> Iterator[str]:
        """The keys among `rows` that were known from the start and not met since."""
        for row in rows:
            at = self._place(row.key)
            if at is not None and not self._met[at]:
                yield row.key

    def _place(self, key: str) -> int | None:
        half = np.uint64(_half_of_key(key))
        at = int(np.searchsorted(self._keys, half))
        return at if at < len(self._keys) and self._keys[at] == half else None


def _half_of_key(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _half_of_content(content_hash: str) -> int:
    return int(content_hash[:16], 16) or 1
