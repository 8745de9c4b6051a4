"""Opens the store that an address names: a folder or object store (LanceDB), or a Qdrant server.

Knows no vectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from amdim_clients.neighbors import NeighborIndex
from amdim_clients.space import VectorSpace
from amdim_clients.window_rows import WindowPlan

QDRANT_PREFIX: Final = "qdrant+"


class Store(NeighborIndex, Protocol):
    """An index that is kept."""

    def tune(self) -> None:
        """Put in order what many additions left."""


def open_store(place: str, *, qdrant_key: str | None = None) -> Store:
    """The index at `place`, `qdrant+http://HOST:PORT/NAME` for one on a Qdrant server.

    Raises:
        IndexStoreError: There is none, or it is damaged.
    """
    if place.startswith(QDRANT_PREFIX):
        from amdim_clients.qdrant_index import connect, open_qdrant

        client, name = connect(place.removeprefix(QDRANT_PREFIX), qdrant_key)
        return open_qdrant(client, name)
    from amdim_clients.lance_index import open_index

    return open_index(place)


def open_or_create_store(
    place: str, space: VectorSpace, plan: WindowPlan | None, *, qdrant_key: str | None = None
) -> Store:
    """The index at `place`, a new one where there is none.

    Raises:
        DigestMismatchError: The index there holds vectors of another space.
        ScaleError: It holds other windows.
        IndexStoreError: It is damaged or cannot be created.
    """
    if place.startswith(QDRANT_PREFIX):
        from amdim_clients.qdrant_index import connect, open_or_create_qdrant

        client, name = connect(place.removeprefix(QDRANT_PREFIX), qdrant_key)
        return open_or_create_qdrant(client, name, space, plan)
    from amdim_clients.lance_index import open_or_create_index

    return open_or_create_index(place, space, plan)


def stored_plan(place: str, *, qdrant_key: str | None = None) -> WindowPlan | None:
    """Which windows an index at `place` holds; None for none, and where there is no index yet.

    Raises:
        IndexStoreError: It is damaged.
    """
    if place.startswith(QDRANT_PREFIX):
        from amdim_clients.qdrant_index import connect, has_qdrant, open_qdrant

        client, name = connect(place.removeprefix(QDRANT_PREFIX), qdrant_key)
        return open_qdrant(client, name).plan if has_qdrant(client, name) else None
    from amdim_clients.lance_index import has_index, open_index

    return open_index(place).plan if has_index(place) else None


def failures_file(place: str) -> Path:
    """Where skipped pictures are listed: beside a folder, else here."""
    if "://" in place:
        return Path("amdim-index.failures.jsonl")
    folder = Path(place)
    return folder.with_name(folder.name + ".failures.jsonl")
