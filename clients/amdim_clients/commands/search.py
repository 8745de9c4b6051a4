"""`amdim search`: the pictures of an index that are most like some, or that contain a part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from amdim_clients.answers import QueryPicture
    from amdim_clients.neighbors import NeighborIndex
    from amdim_clients.searching import Sought


def search(
    images: Annotated[
        list[str],
        typer.Argument(help="Pictures to find the like of, or PACK#PLACE."),
    ],
    db: Annotated[str, typer.Option("--db", help="An index made by `amdim index`.")],
    region: Annotated[
        str | None,
        typer.Option(help="Only this part of the picture: x0,y0,x1,y1 in 0..1. Needs windows."),
    ] = None,
    unlike: Annotated[
        list[str] | None, typer.Option("--not", help="A picture to stay away from; repeatable.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="A condition like width>=640, modified>=2025-01-31, label=cat or path=FOLDER; "
            "repeatable, all must hold."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many pictures.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    maps: Annotated[
        bool,
        typer.Option("--maps", help="Add to the JSON where each answer matches, 7 by 7 cells."),
    ] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Also draw query and answers to this PNG.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also draw query and answers to this page.")
    ] = None,
    heat: Annotated[
        bool, typer.Option("--heat/--no-heat", help="Lay over drawn answers where they match.")
    ] = True,
    copy_to: Annotated[
        Path | None, typer.Option(help="Also copy the answers into this folder.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare every row, even in a large index.")
    ] = False,
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
    model: Annotated[str | None, typer.Option(help="Model; default the index's.")] = None,
) -> None:
    """Find the pictures of an index that are like some pictures, or contain a part of one."""
    from amdim_clients import answers as shown
    from amdim_clients.conditions import parse_conditions
    from amdim_clients.regions import parse_region
    from amdim_clients.searching import Sought, combine, find_pictures, find_windows
    from amdim_clients.sheet import save_sheet
    from amdim_clients.stores import open_store

    if region is not None and (len(images) > 1 or unlike):
        raise typer.BadParameter("a region is of one picture", param_hint="--region")
    box = parse_region(region) if region is not None else None
    conditions = parse_conditions(where or [])
    store = open_store(db, qdrant_key=qdrant_key)
    queries = [
        *(shown.QueryPicture(image, None, box) for image in images),
        *(shown.QueryPicture(image, None, unlike=True) for image in unlike or []),
    ]
    place = {"url": url, "api_key": api_key, "repository": repository, "model": model}
    sought = _sought(queries, store, place)
    query, *others = sought
    if others:
        likes = [one.vector for q, one in zip(queries, sought, strict=True) if not q.unlike]
        unlikes = [one.vector for q, one in zip(queries, sought, strict=True) if q.unlike]
        query = Sought(combine(likes, unlikes))
    if box is None:
        found = find_pictures(query, store, count=k, exact=exact, where=conditions)
    else:
        found = find_windows(query.vector, store, count=k, exact=exact, where=conditions)
    if sheet is not None or html is not None:
        drawn = shown.with_data(queries)
        if sheet is not None:
            save_sheet(shown.draw_answers(drawn, found, heat=heat), sheet)
        if html is not None:
            shown.save_text(shown.page_of_answers(drawn, found, heat=heat), html)
    if copy_to is not None:
        copied = shown.copy_answers(found, copy_to)
        typer.echo(f"{copied} pictures copied to {copy_to}", err=True)
    if not as_json:
        typer.echo(shown.answers_as_text(found), nl=False)
        return
    documents = shown.answers_as_json(found, store.facts(answer.key for answer in found))
    if maps:
        from amdim_clients.commands.places import add_maps

        add_maps(documents, images[0], box, place)
    typer.echo(shown.document(queries, store.space, documents))


def _sought(
    queries: list[QueryPicture], store: NeighborIndex, place: dict[str, Any]
) -> list[Sought]:
    """Each picture of the query; no model is opened for those that the index holds."""
    from amdim_clients.commands.opening import open_embedder
    from amdim_clients.searching import (
        Sought,
        embed_picture,
        embed_region,
        read_query,
        stored_picture,
    )
    from amdim_clients.window_embedders import as_window_embedder

    known = {q.name: stored_picture(q.name, store) if q.region is None else None for q in queries}
    if all(one is not None for one in known.values()):
        return [one for q in queries if (one := known[q.name]) is not None]
    datas = {q.name: read_query(q.name) for q in queries if known[q.name] is None}
    # A gateway names the encoder whose windows it gives; here they are another model.
    if place["model"] is None and place["url"] is None and store.plan is None:
        place = {**place, "model": store.space.model}
    with open_embedder(
        **place,
        outputs=None if store.plan else [store.space.output],
        normalize=store.space.normalized,
        plan=store.plan,
    ) as embedder:
        sought = []
        for q in queries:
            one = known[q.name]
            if one is None and q.region is not None:
                windows = as_window_embedder(embedder)
                one = Sought(embed_region(datas[q.name], q.region, windows, store))
            elif one is None:
                one = embed_picture(datas[q.name], embedder, store)
            sought.append(one)
        return sought
