"""`amdim index`: folders and packs into an index that can be searched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def index(
    paths: Annotated[
        list[str],
        typer.Argument(help="Folders, pictures, patterns or packs (.parquet, .tar, .zip)."),
    ],
    db: Annotated[Path, typer.Option("--db", help="The index; made where there is none.")],
    url: Annotated[str | None, typer.Option(help="Encode by a gateway, not here.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="AMDIM_API_KEY", help="The gateway's key.")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository; default ./model_repository.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model; default amdim.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode.")] = None,
    failures: Annotated[
        Path | None, typer.Option(help="Where skipped pictures are listed; default beside DB.")
    ] = None,
) -> None:
    """Bring an index up to date with folders of pictures."""
    from amdim_clients.commands.opening import open_embedder
    from amdim_clients.commands.reporting import (
        SOME_FAILED,
        beside,
        image_progress,
        report_failures,
    )
    from amdim_clients.indexing import update_index
    from amdim_clients.lance_index import open_or_create_index
    from amdim_clients.walk import count_images

    total = count_images(paths)
    with open_embedder(url=url, api_key=api_key, repository=repository, model=model) as embedder:
        (output,) = embedder.origin.outputs
        store = open_or_create_index(db, embedder.origin.space(output))
        with image_progress("indexing", total) as progress:
            report = update_index(
                paths, embedder, store, output=output, workers=workers, progress=progress
            )
        store.tune()
    report_failures(report.failed, failures or beside(db))
    typer.echo(
        f"{report.added} added, {report.unchanged} unchanged, {report.removed} removed, "
        f"{len(report.failed)} skipped: {len(store)} pictures in {db}"
    )
    if report.failed:
        raise typer.Exit(SOME_FAILED)
