"""`amdim embed`: pictures in, a file of vectors out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def embed(
    paths: Annotated[
        list[str],
        typer.Argument(help="Pictures, folders, patterns or packs (.parquet, .tar, .zip)."),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Ends in .parquet, .npy, .safetensors or .faiss.")
    ],
    outputs: Annotated[
        str | None, typer.Option(help="Outputs, with commas between; default the model's own.")
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--raw", help="Scale every vector to length 1.")
    ] = True,
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
        Path | None, typer.Option(help="Where skipped pictures are listed; default beside OUT.")
    ] = None,
) -> None:
    """Write the vectors of pictures to a file."""
    from amdim_clients.commands.opening import open_embedder
    from amdim_clients.commands.reporting import (
        SOME_FAILED,
        beside,
        image_progress,
        report_failures,
    )
    from amdim_clients.embedding import embed_to_file
    from amdim_clients.vector_files import check_suffix
    from amdim_clients.walk import count_images

    check_suffix(out)
    total = count_images(paths)
    with open_embedder(
        url=url,
        api_key=api_key,
        repository=repository,
        model=model,
        outputs=[name.strip() for name in outputs.split(",")] if outputs else None,
        normalize=normalize,
    ) as embedder:
        with image_progress("embedding", total) as progress:
            report = embed_to_file(paths, embedder, out, workers=workers, progress=progress)
        names = ", ".join(embedder.origin.outputs)
    report_failures(report.failed, failures or beside(out))
    if not report.written:
        typer.echo("amdim: no picture could be embedded; nothing was written", err=True)
        raise typer.Exit(1)
    resumed = f" ({report.resumed} of them from a run that was cut off)" if report.resumed else ""
    typer.echo(f"{report.written} pictures{resumed}: {names} in {out}")
    if report.failed:
        raise typer.Exit(SOME_FAILED)
