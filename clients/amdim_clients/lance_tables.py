"""The two tables of an index on LanceDB, their columns, and conditions in its SQL.

Knows no pictures and no encoder. What the store itself says when it fails is turned into a
sentence here, so that nobody has to read a stack of another language.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from amdim_clients.conditions import PATH, Condition
from amdim_clients.errors import IndexStoreError
from amdim_clients.facts import PictureFacts
from amdim_clients.keys import below_prefixes
from amdim_clients.pipeline import Record
from amdim_clients.space import VectorSpace
from amdim_clients.store_rows import window_counts
from amdim_clients.window_rows import PictureWindows, WindowPlan

IMAGES: Final = "images"
WINDOWS: Final = "windows"
VECTOR: Final = "vector"
BOX: Final = ("x0", "y0", "x1", "y1")
SPACE_KEY: Final = b"amdim"
PLAN_KEY: Final = b"amdim_windows"
FACTS: Final = ("bytes", "modified", "width", "height", "label")
_FACT_TYPES: Final = (pa.int64(), pa.int64(), pa.int32(), pa.int32(), pa.string())


@contextmanager
def told(place: str) -> Iterator[None]:
    """Turns a failure of the store into an `IndexStoreError`."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        raise IndexStoreError(_sentence(place, str(error))) from error


def image_schema(space: VectorSpace) -> Any:
    """Columns of whole pictures."""
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("content_hash", pa.string(), nullable=False),
            pa.field("artifact_digest", pa.string(), nullable=False),
            *(pa.field(name, kind) for name, kind in zip(FACTS, _FACT_TYPES, strict=True)),
            pa.field(WINDOWS, pa.int32()),  # how many the other table holds; null: never asked for
            pa.field(VECTOR, pa.list_(pa.float32(), space.dim), nullable=False),
        ],
        metadata={SPACE_KEY: space.to_json().encode()},
    )


def window_schema(space: VectorSpace, plan: WindowPlan) -> Any:
    """Columns of windows; facts are repeated, since filters must work before the search."""
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("content_hash", pa.string(), nullable=False),
            *(pa.field(name, kind) for name, kind in zip(FACTS, _FACT_TYPES, strict=True)),
            pa.field("scale", pa.float32(), nullable=False),
            *(pa.field(name, pa.float32(), nullable=False) for name in BOX),
            # Half precision: an approximate index on 8-bit integers is not to be had here.
            pa.field(VECTOR, pa.list_(pa.float16(), space.dim), nullable=False),
        ],
        metadata={SPACE_KEY: space.to_json().encode(), PLAN_KEY: plan.to_json().encode()},
    )


def image_rows(
    records: Sequence[Record],
    vectors: Any,
    windows: Sequence[PictureWindows] | None,
    artifact_digest: str,
    space: VectorSpace,
) -> Any:
    """A table of whole pictures."""
    return pa.table(
        [
            pa.array([record.key for record in records], pa.string()),
            pa.array([record.content_hash for record in records], pa.string()),
            pa.array([artifact_digest] * len(records), pa.string()),
            *_fact_columns(records),
            pa.array(window_counts(windows, len(records)), pa.int32()),
            _vectors(vectors, np.float32, space.dim),
        ],
        schema=image_schema(space),
    )


def window_rows(
    records: Sequence[Record],
    windows: Sequence[PictureWindows],
    space: VectorSpace,
    plan: WindowPlan,
) -> Any:
    """A table of all windows of some pictures."""
    repeated = [
        record for record, each in zip(records, windows, strict=True) for _ in range(len(each))
    ]
    boxes = np.concatenate([each.boxes for each in windows]).astype(np.float32)
    return pa.table(
        [
            pa.array([record.key for record in repeated], pa.string()),
            pa.array([record.content_hash for record in repeated], pa.string()),
            *_fact_columns(repeated),
            pa.array(np.concatenate([each.scales for each in windows]).astype(np.float32)),
            *(pa.array(np.ascontiguousarray(boxes[:, at])) for at in range(len(BOX))),
            _vectors(np.concatenate([each.vectors for each in windows]), np.float16, space.dim),
        ],
        schema=window_schema(space, plan),
    )


def facts_of(row: dict[str, Any]) -> PictureFacts:
    """The facts in a row of either table."""
    return PictureFacts(**{name: row[name] for name in FACTS})


def matrix(column: Any, dim: int) -> Any:
    """A column of vectors as (N, dim)."""
    values = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    return values.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)


def where_sql(conditions: Iterable[Condition]) -> str | None:
    """Conditions in the store's SQL, None where there are none."""
    parts = [_condition_sql(condition) for condition in conditions]
    return " AND ".join(f"({part})" for part in parts) if parts else None


def below_sql(root: str) -> str:
    """Rows at or below a file, folder or pack."""
    folder, pack = below_prefixes(root)
    return (
        f"path = {quoted(root)} OR starts_with(path, {quoted(folder)})"
        f" OR starts_with(path, {quoted(pack)})"
    )


def any_of(column: str, values: Sequence[str]) -> str:
    """Rows whose column is one of the values."""
    return f"{column} IN ({', '.join(quoted(value) for value in values)})"


def quoted(text: str) -> str:
    """A string of the store's SQL."""
    return "'" + text.replace("'", "''") + "'"


def has_table(place: str, name: str) -> bool:
    """Whether a table at a local place was ever committed; a killed creation leaves only a folder.

    Args:
        place: A folder.
        name: Of the table.
    """
    return any(Path(place, f"{name}.lance", "_versions").glob("*.manifest"))


def _condition_sql(condition: Condition) -> str:
    if condition.field == PATH:
        below = below_sql(str(condition.value))
        return below if condition.op == "=" else f"NOT ({below})"
    value = condition.value if isinstance(condition.value, int) else quoted(condition.value)
    return f"{condition.field} {condition.op} {value}"


def _fact_columns(records: Sequence[Record]) -> list[Any]:
    return [
        pa.array([getattr(record.facts, name) for record in records], kind)
        for name, kind in zip(FACTS, _FACT_TYPES, strict=True)
    ]


def _vectors(vectors: Any, dtype: Any, dim: int) -> Any:
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(vectors, dtype).ravel()), dim
    )


def _sentence(place: str, text: str) -> str:
    lower = text.lower()
    if "no space left" in lower or "os error 28" in lower or "file too large" in lower:
        return (
            f"the disk of {place} is full; the index holds what was finished before: "
            "free some space and run the command again"
        )
    if "permission denied" in lower:
        return f"the index at {place} may not be read or written by this user"
    if "conflict" in lower:
        return f"another process is writing to the index at {place}: run the command again"
    return f"the index at {place} is damaged: delete it and run amdim index again"
