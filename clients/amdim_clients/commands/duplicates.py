"""`amdim duplicates`: pictures of an index that are nearly the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def duplicates(
    db: Annotated[str, typer.Option("--db", help="An index made by `amdim index`.")],
    folder: Annotated[
        str, typer.Argument(help="Only pictures at or below this folder or pack.")
    ] = "/",
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Least cosine of two duplicates; default 0.8."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Also draw the groups to this PNG.")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare every row, even in a large index.")
    ] = False,
    qdrant_key: Annotated[
        str | None, typer.Option(envvar="AMDIM_QDRANT_API_KEY", help="The Qdrant server's key.")
    ] = None,
) -> None:
    """List the pictures of an index that are nearly the same."""
    from amdim_clients.answers import draw_groups
    from amdim_clients.duplicates import THRESHOLD, find_duplicates
    from amdim_clients.sheet import save_sheet
    from amdim_clients.stores import open_store

    store = open_store(db, qdrant_key=qdrant_key)
    groups = find_duplicates(
        store,
        str(Path(folder).resolve()),
        threshold=THRESHOLD if threshold is None else threshold,
        exact=exact,
    )
    if sheet is not None and groups:
        save_sheet(draw_groups([group.keys for group in groups]), sheet)
    if as_json:
        documents = [{"least": group.least, "paths": group.keys} for group in groups]
        typer.echo(json.dumps({"groups": documents}, ensure_ascii=False, indent=2))
        return
    for group in groups:
        typer.echo(f"{group.least:.4f}  {len(group.keys)} pictures")
        for key in group.keys:
            typer.echo(f"        {key}")
    pictures = sum(len(group.keys) for group in groups)
    typer.echo(f"{len(groups)} groups, {pictures} of {len(store)} pictures")
