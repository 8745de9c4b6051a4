"""`amdim search`: the pictures of an index that are most like one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def search(
    image: Annotated[str, typer.Argument(help="A picture, or one of a pack as PACK#PLACE.")],
    db: Annotated[Path, typer.Option("--db", help="An index made by `amdim index`.")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many neighbours.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Also draw query and neighbours to this PNG.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare every row, even in a large index.")
    ] = False,
    url: Annotated[str | None, typer.Option(help="Encode by a gateway, not here.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="AMDIM_API_KEY", help="The gateway's key.")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository; default ./model_repository.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model; default the index's.")] = None,
) -> None:
    """Find the pictures of an index that are most like one."""
    from amdim_clients.commands.opening import open_embedder
    from amdim_clients.lance_index import open_index
    from amdim_clients.searching import draw_result, find_neighbors, read_query
    from amdim_clients.sheet import save_sheet

    data = read_query(image)
    store = open_index(db)
    with open_embedder(
        url=url,
        api_key=api_key,
        repository=repository,
        model=model or (None if url else store.space.model),
        outputs=[store.space.output],
        normalize=store.space.normalized,
    ) as embedder:
        found = find_neighbors(data, embedder, store, count=k, exact=exact)
    if sheet is not None:
        save_sheet(draw_result(image, data, found), sheet)
    ranked = list(zip(found.keys, found.scores.tolist(), found.distances.tolist(), strict=True))
    if as_json:
        document = {
            "query": image,
            "model": store.space.model,
            "output": store.space.output,
            "normalized": store.space.normalized,
            "encoder_digest": store.space.encoder_digest,
            "preprocess_digest": store.space.preprocess_digest,
            "neighbors": [
                {"rank": rank, "path": key, "score": score, "distance": distance}
                for rank, (key, score, distance) in enumerate(ranked, start=1)
            ],
        }
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
        return
    for rank, (key, score, _) in enumerate(ranked, start=1):
        typer.echo(f"{rank:>4}  {score:.4f}  {key}")
