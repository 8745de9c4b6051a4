"""Makes and opens indexes on LanceDB. A creation that was killed counts as none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb

from amdim_clients.errors import IndexStoreError, ScaleError
from amdim_clients.lance_rows import LanceIndex
from amdim_clients.lance_tables import (
    IMAGES,
    PLAN_KEY,
    SPACE_KEY,
    WINDOWS,
    has_table,
    image_schema,
    told,
    window_schema,
)
from amdim_clients.space import VectorSpace
from amdim_clients.window_rows import WindowPlan

__all__ = ["LanceIndex", "create_index", "has_index", "open_index", "open_or_create_index"]


def has_index(place: str | Path) -> bool:
    """Whether an index was ever made at a place."""
    if _is_local(place):
        return has_table(str(place), IMAGES)
    return _exists(_connect(place), place, IMAGES)


def open_index(place: str | Path) -> LanceIndex:
    """The index at a folder, or at the URI of an object store.

    Raises:
        IndexStoreError: There is none, or it does not say where its vectors come from.
    """
    database = _connect(place)
    if not _exists(database, place, IMAGES):
        raise IndexStoreError(f"there is no index at {place}: make one with amdim index")
    with told(str(place)):
        images = database.open_table(IMAGES)
        windows = database.open_table(WINDOWS) if _exists(database, place, WINDOWS) else None
    metadata = images.schema.metadata or {}
    space = VectorSpace.from_json(metadata.get(SPACE_KEY, b"null").decode())
    if not images.schema.equals(image_schema(space)):
        raise IndexStoreError(
            f"the index at {place} was made by another version of this program: "
            "delete it and run amdim index again"
        )
    if windows is None:
        return LanceIndex(str(place), images, None, space, None)
    metadata = windows.schema.metadata or {}
    VectorSpace.from_json(metadata.get(SPACE_KEY, b"null").decode()).check(space)
    plan = WindowPlan.from_json(metadata.get(PLAN_KEY, b"null").decode())
    return LanceIndex(str(place), images, windows, space, plan)


def create_index(
    place: str | Path, space: VectorSpace, plan: WindowPlan | None = None
) -> LanceIndex:
    """A new and empty index.

    Raises:
        IndexStoreError: It cannot be created there.
    """
    database = _connect(place, make=True)
    # Last the table by which an index is known: a creation that is killed leaves none.
    windows = (
        _create(database, place, WINDOWS, window_schema(space, plan)) if plan is not None else None
    )
    images = _create(database, place, IMAGES, image_schema(space))
    return LanceIndex(str(place), images, windows, space, plan)


def open_or_create_index(
    place: str | Path, space: VectorSpace, plan: WindowPlan | None = None
) -> LanceIndex:
    """The index at a place for vectors of `space`, a new one where there is none.

    Args:
        place: A folder or a URI.
        space: Of the vectors that will be added or sought.
        plan: Windows to hold beside whole pictures; None for none.

    Raises:
        DigestMismatchError: The index there holds vectors of another space.
        ScaleError: It holds other windows.
        IndexStoreError: It is broken or cannot be created.
    """
    if not _exists(_connect(place, make=True), place, IMAGES):
        return create_index(place, space, plan)
    index = open_index(place)
    if plan != index.plan:
        raise ScaleError(
            f"the index at {place} holds {_listed(index.plan)}: leave --windows, --scales and "
            "--stride out, or make a new index"
        )
    index.space.check(space)
    return index


def _create(database: Any, place: str | Path, name: str, schema: Any) -> Any:
    try:
        # Only windows can be there already, of a creation that was killed before its last table.
        mode = "overwrite" if _exists(database, place, name) else "create"
        return database.create_table(name, schema=schema, mode=mode)
    except (ValueError, OSError, RuntimeError) as error:
        raise IndexStoreError(f"cannot create an index at {place}: {_short(error)}") from error


def _connect(place: str | Path, *, make: bool = False) -> Any:
    if not _is_local(place):
        return lancedb.connect(str(place))
    folder = Path(place)
    if not make and not folder.is_dir():
        raise IndexStoreError(f"there is no index at {place}: make one with amdim index")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IndexStoreError(f"cannot create an index at {place}: {error.strerror}") from error
    with told(str(place)):
        return lancedb.connect(folder)


def _exists(database: Any, place: str | Path, name: str) -> bool:
    if _is_local(place):
        return has_table(str(place), name)
    with told(str(place)):
        return name in database.table_names()


def _is_local(place: str | Path) -> bool:
    return "://" not in str(place)


def _listed(plan: WindowPlan | None) -> str:
    if plan is None:
        return "no windows"
    return f"windows at scales {','.join(f'{s:g}' for s in plan.scales)}, stride {plan.stride}"


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
