"""What was found, for eyes and for files: a contact sheet, a page, copies of the pictures.

Knows no index and no encoder.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from PIL import Image

from amdim_clients.atomic import written_aside
from amdim_clients.errors import SourceError
from amdim_clients.facts import NO_FACTS, PictureFacts
from amdim_clients.fields import Box
from amdim_clients.heat import heat_cells
from amdim_clients.searching import Answer
from amdim_clients.sheet import Tile, contact_sheet, draw_tile
from amdim_clients.space import VectorSpace
from amdim_clients.walk import read_keys

_PAGE_TILE: Final = 320
_STYLE: Final = """
body{font:15px/1.4 system-ui,sans-serif;margin:1.5rem;background:Canvas;color:CanvasText;
color-scheme:light dark}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(240px,1fr));gap:1rem}
figure{margin:0}img{width:100%;border-radius:6px}
figcaption{overflow-wrap:anywhere;font-size:.85rem}.query img{outline:4px solid #c62828}
"""


@dataclass(frozen=True)
class QueryPicture:
    """One picture of a query."""

    name: str
    data: bytes | None
    region: Box | None = None
    unlike: bool = False


def with_data(queries: Sequence[QueryPicture]) -> list[QueryPicture]:
    """The queries with the bytes of their files, where these are still there."""
    pictures = read_keys(query.name for query in queries)
    return [replace(query, data=pictures.get(query.name)) for query in queries]


def answers_as_text(answers: Sequence[Answer]) -> str:
    """A line for each answer."""
    return "".join(
        f"{rank:>4}  {answer.score:.4f}  {answer.key}\n"
        for rank, answer in enumerate(answers, start=1)
    )


def answers_as_json(
    answers: Sequence[Answer], facts: Mapping[str, PictureFacts]
) -> list[dict[str, Any]]:
    """What a program wants to know of each answer; what is not known is left out."""
    documents = []
    for rank, answer in enumerate(answers, start=1):
        document: dict[str, Any] = {
            "rank": rank,
            "path": answer.key,
            "score": answer.score,
            "distance": 1 - answer.score,
            "box": answer.box,
            "scale": answer.scale,
            **asdict(facts.get(answer.key, NO_FACTS)),
        }
        documents.append({name: value for name, value in document.items() if value is not None})
    return documents


def document(
    queries: Sequence[QueryPicture], space: VectorSpace, answers: Sequence[Mapping[str, Any]]
) -> str:
    """The whole answer in JSON, with what the vectors are of."""
    likes = [query.name for query in queries if not query.unlike]
    body: dict[str, Any] = {
        "query": likes[0] if len(likes) == 1 else likes,
        "not": [query.name for query in queries if query.unlike],
        "region": queries[0].region,
        **{name: value for name, value in asdict(space).items() if name != "dim"},
        "neighbors": answers,
    }
    kept = {name: value for name, value in body.items() if value not in (None, [])}
    return json.dumps({**kept, "neighbors": answers}, ensure_ascii=False, indent=2)


def draw_answers(
    queries: Sequence[QueryPicture], answers: Sequence[Answer], *, heat: bool = True
) -> Image.Image:
    """A contact sheet of the queries and what was found, with boxes and heat where known."""
    return contact_sheet(_query_tiles(queries), _answer_tiles(answers, heat=heat))


def draw_groups(groups: Sequence[Sequence[str]], *, most: int = 60) -> Image.Image:
    """A contact sheet of groups of pictures; so many at most."""
    tiles: list[Tile] = []
    for number, keys in enumerate(groups, start=1):
        if tiles and len(tiles) + len(keys) > most:
            break
        pictures = read_keys(keys)
        tiles += [Tile((f"group {number}", _last_part(key)), pictures.get(key)) for key in keys]
    return contact_sheet([], tiles[:most])


def page_of_answers(
    queries: Sequence[QueryPicture], answers: Sequence[Answer], *, heat: bool = True
) -> str:
    """The same as one page of HTML that needs nothing beside it."""
    figures = [
        _figure(tile, "query" if position < len(queries) else "answer")
        for position, tile in enumerate(
            [*_query_tiles(queries), *_answer_tiles(answers, heat=heat)]
        )
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Search results</title><style>{_STYLE}</style>"
        f"<h1>{len(answers)} pictures found</h1><main>{''.join(figures)}</main></html>\n"
    )


def save_text(text: str, target: Path) -> None:
    """Write a text file whole or not at all.

    Raises:
        SourceError: It cannot be written.
    """
    with written_aside(target) as aside:
        aside.write_text(text, "utf-8")


def copy_answers(answers: Sequence[Answer], folder: Path) -> int:
    """Copy the pictures that were found, named by rank; returns how many were still there.

    Raises:
        SourceError: The folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"cannot make the folder {folder}: {error.strerror}") from error
    pictures = read_keys(answer.key for answer in answers)
    copied = 0
    for rank, answer in enumerate(answers, start=1):
        data = pictures.get(answer.key)
        if data is not None:
            with written_aside(folder / f"{rank:03}_{_last_part(answer.key)}") as aside:
                aside.write_bytes(data)
            copied += 1
    return copied


def _query_tiles(queries: Sequence[QueryPicture]) -> list[Tile]:
    return [
        Tile(
            ("not like" if query.unlike else "query", _last_part(query.name)),
            query.data,
            query.region,
        )
        for query in queries
    ]


def _answer_tiles(answers: Sequence[Answer], *, heat: bool) -> list[Tile]:
    pictures = read_keys(answer.key for answer in answers)
    return [
        Tile(
            (f"{rank}.  {answer.score:.4f}", _last_part(answer.key)),
            pictures.get(answer.key),
            answer.box,
            heat_cells(answer.boxes, answer.cosines)
            if heat and answer.boxes is not None and answer.cosines is not None
            else None,
        )
        for rank, answer in enumerate(answers, start=1)
    ]


def _figure(tile: Tile, kind: str) -> str:
    buffer = io.BytesIO()
    draw_tile(tile, _PAGE_TILE).save(buffer, "JPEG", quality=85)
    source = base64.b64encode(buffer.getvalue()).decode("ascii")
    first, second = (html.escape(line) for line in tile.caption)
    return (
        f'<figure class="{kind}"><img alt="{second}" src="data:image/jpeg;base64,{source}">'
        f"<figcaption>{first}<br>{second}</figcaption></figure>"
    )


def _last_part(key: str) -> str:
    return Path(key).name
