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
    db: Annotated[
        str,
        typer.Option(
            "--db",
            help="The index, made where there is none: a folder, the URI of an object store, or "
            "qdrant+http://HOST:PORT/NAME.",
        ),
    ],
    windows: Annotated[
        bool | None,
        typer.Option(
            "--windows/--no-windows",
            help="Also hold vectors of the parts of each picture; default as the index has it.",
        ),
    ] = None,
    scales: Annotated[
        str | None, typer.Option(help="Scales of windows, with commas between; default 1,1.5,2,3.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Eighths of a window between kept windows; default 4.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Encode by a gateway, not here.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="AMDIM_API_KEY", help="The gateway's key.")
    ] = None,
    qdrant_key: Annotated[
        str | None, typer.Option(envvar="AMDIM_QDRANT_API_KEY", help="The Qdrant server's key.")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository; default ./model_repository.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model; default amdim, or amdim_windows for windows.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode.")] = None,
    failures: Annotated[
        Path | None, typer.Option(help="Where skipped pictures are listed; default beside DB.")
    ] = None,
) -> None:
    """Bring an index up to date with folders of pictures."""
    from amdim_clients.commands.opening import open_embedder
    from amdim_clients.commands.reporting import SOME_FAILED, image_progress, report_failures
    from amdim_clients.indexing import update_index
    from amdim_clients.stores import failures_file, open_or_create_store, stored_plan
    from amdim_clients.walk import count_images
    from amdim_clients.window_rows import choose_plan

    total = count_images(paths)
    plan = choose_plan(windows, scales, stride, stored_plan(db, qdrant_key=qdrant_key))
    with open_embedder(
        url=url, api_key=api_key, repository=repository, model=model, plan=plan
    ) as embedder:
        (output,) = embedder.origin.outputs
        store = open_or_create_store(db, embedder.origin.space(output), plan, qdrant_key=qdrant_key)
        with image_progress("indexing", total) as progress:
            report = update_index(
                paths, embedder, store, output=output, workers=workers, progress=progress
            )
        store.tune()
    report_failures(report.failed, failures or failures_file(db))
    moved = f"{report.moved} moved, " if report.moved else ""
    typer.echo(
        f"{report.added} added, {moved}{report.unchanged} unchanged, {report.removed} removed, "
        f"{len(report.failed)} skipped: {len(store)} pictures in {db}"
    )
    if plan is not None and len(store):
        a_picture = store.window_count / len(store)
        kilobytes = a_picture * plan.window_bytes(store.space.dim) / 1000
        typer.echo(
            f"{store.window_count} windows, {a_picture:.0f} a picture: "
            f"{kilobytes:.1f} kB a picture beside its own {4 * store.space.dim / 1000:.1f} kB"
        )
    if report.failed:
        raise typer.Exit(SOME_FAILED)
