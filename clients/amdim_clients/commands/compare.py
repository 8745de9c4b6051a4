"""`amdim compare`: how alike two pictures are, and which part of one is which of the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def compare(
    first: Annotated[str, typer.Argument(help="A picture, or one of a pack as PACK#PLACE.")],
    second: Annotated[str, typer.Argument(help="Another.")],
    sheet: Annotated[
        Path | None, typer.Option(help="Draw both, corresponding parts in the same colours.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    pairs: Annotated[int, typer.Option(min=0, max=7, help="Corresponding parts at most.")] = 5,
    url: Annotated[str | None, typer.Option(help="Encode by a gateway, not here.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="AMDIM_API_KEY", help="The gateway's key.")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository; default ./model_repository.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model; default amdim.")] = None,
) -> None:
    """Show how alike two pictures are, and where they correspond."""
    from amdim_clients import comparing
    from amdim_clients.commands.opening import open_embedder
    from amdim_clients.searching import read_query
    from amdim_clients.sheet import save_sheet

    datas = read_query(first), read_query(second)
    with open_embedder(
        url=url,
        api_key=api_key,
        repository=repository,
        model=model,
        outputs=comparing.OUTPUTS,
        normalize=False,
    ) as embedder:
        features = [comparing.picture_features(data, embedder) for data in datas]
    found = comparing.compare(*features, pairs=pairs)
    if sheet is not None:
        save_sheet(comparing.draw_comparison(*datas, found), sheet)
    if as_json:
        document = {"first": first, "second": second, **found.to_json()}
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
        return
    typer.echo(f"cosine {found.match.cosine:.4f}   score {found.match.whole.score:.3f}")
    for pair in found.pairs:
        edges = "  ".join(
            ",".join(f"{edge:.2f}" for edge in box) for box in (pair.first, pair.second)
        )
        typer.echo(f"{pair.score:8.3f}  {edges}")
