"""`amdim map`: a collection drawn on a plane, alike pictures beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

_MOST = 2500  # pictures drawn: beyond, each would be too small to see


def map_(
    db: Annotated[str, typer.Option("--db", help="An index made by `amdim index`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .png to look at, or a .json.")],
    folder: Annotated[
        str, typer.Argument(help="Only pictures at or below this folder or pack.")
    ] = "/",
    most: Annotated[
        int, typer.Option(min=1, help="Pictures at most, taken evenly; default 2500.")
    ] = _MOST,
    qdrant_key: Annotated[
        str | None, typer.Option(envvar="AMDIM_QDRANT_API_KEY", help="The Qdrant server's key.")
    ] = None,
) -> None:
    """Draw the pictures of an index on a plane, alike ones beside each other."""
    import numpy as np

    from amdim_clients.answers import save_text
    from amdim_clients.errors import SourceError
    from amdim_clients.plane import draw_plane, project, spread
    from amdim_clients.sheet import save_sheet
    from amdim_clients.stores import open_store
    from amdim_clients.walk import read_keys

    if out.suffix not in (".png", ".json"):
        raise SourceError(f"{out.name} must end in .png or .json")
    store = open_store(db, qdrant_key=qdrant_key)
    keys = [row.key for row in store.rows(str(Path(folder).resolve()))]
    if not keys:
        raise SourceError(f"the index holds no pictures below {folder}")
    step = -(-len(keys) // most)
    vectors = store.vectors(keys[::step])
    points = project(np.stack(list(vectors.values())))
    if out.suffix == ".json":
        rows = [
            {"path": key, "x": float(x), "y": float(y)}
            for key, (x, y) in zip(vectors, points, strict=True)
        ]
        save_text(json.dumps({"points": rows}, ensure_ascii=False, indent=1), out)
    else:
        save_sheet(draw_plane(list(vectors), spread(points), read_keys(vectors)), out)
    typer.echo(f"{len(vectors)} of {len(keys)} pictures in {out}")
