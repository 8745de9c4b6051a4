"""One picture against an index. Knows neither storage nor engines, only their interfaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from amdim_clients.embedders import Embedder
from amdim_clients.errors import EngineError, ImageError, SourceError
from amdim_clients.inputs import ImageFailure
from amdim_clients.neighbors import NeighborIndex, Neighbors
from amdim_clients.sheet import Tile, contact_sheet
from amdim_clients.walk import read_keys


def read_query(image: str) -> bytes:
    """The bytes of a picture named by a path, or by a key of an index.

    Raises:
        SourceError: There is none.
    """
    found = read_keys([image])
    if image not in found:
        raise SourceError(f"cannot read {image}")
    return found[image]


def find_neighbors(
    data: bytes, embedder: Embedder, index: NeighborIndex, *, count: int, exact: bool = False
) -> Neighbors:
    """The rows of an index nearest to a picture.

    Args:
        data: A whole file.
        embedder: Must make the index's output.
        index: Where to look.
        count: How many rows.
        exact: Compare every row even where an approximate index exists.

    Raises:
        ImageError: The bytes are not a usable picture.
        DigestMismatchError: The embedder's vectors are of another space than the index.
    """
    space = embedder.origin.space(index.space.output)
    index.space.check(space)
    (vectors,) = embedder.embed([embedder.prepare(data)])
    if isinstance(vectors, ImageFailure):
        raise _as_error(vectors)
    queries = np.asarray(vectors[space.output])[None]  # (E,) -> (1, E)
    (found,) = index.search(queries, count, space=space, exact=exact)
    return found


def draw_result(name: str, data: bytes, found: Neighbors) -> Image.Image:
    """A contact sheet of a query and what was found."""
    pictures = read_keys(found.keys)
    tiles = [
        Tile((f"{rank}.  {score:.4f}", _last_part(key)), pictures.get(key))
        for rank, (key, score) in enumerate(zip(found.keys, found.scores, strict=True), start=1)
    ]
    return contact_sheet(Tile(("query", _last_part(name)), data), tiles)


def _last_part(key: str) -> str:
    return Path(key).name


def _as_error(failure: ImageFailure) -> ImageError | EngineError:
    try:
        return ImageError(failure.code)
    except KeyError:
        return EngineError(failure.message)
