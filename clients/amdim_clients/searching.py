"""Pictures, or parts of them, against an index. Knows neither storage nor engines.

What a query is made of (a file, a picture of the index, a region, several of them) becomes one
vector; answers are pictures, with the window that matched where the index holds windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from amdim_clients.conditions import Condition
from amdim_clients.embedders import Embedder
from amdim_clients.errors import EngineError, ImageError, IndexStoreError, SourceError
from amdim_clients.fields import Box
from amdim_clients.inputs import ImageFailure
from amdim_clients.neighbors import FloatArray, NeighborIndex, Neighbors
from amdim_clients.regions import cut_squares
from amdim_clients.walk import read_keys
from amdim_clients.window_embedders import WindowEmbedder
from amdim_clients.window_rows import PictureWindows, WindowPlan

# A picture's score is the mean of its best windows: measured by benchmarks/search.py.
BEST_WINDOWS: Final = 3
# What the pictures of a collection have in common says nothing of one of them, and finds the wrong
# ones: it is taken off query and answers. The mean of so many tells it; that of a few pictures
# holds too much of each. Measured by benchmarks/search.py.
_SAMPLE: Final = 1024
_FEW: Final = 50
# How much of "not like these" is taken off "like these": measured by benchmarks/search.py.
UNLIKE: Final = 0.2
# So many of the pictures that are nearest as wholes are put in order by their parts as well, which
# finds more of the same things: measured by benchmarks/search.py.
COMPARED: Final = 30
# Pictures whose windows are all compared, for each one asked for, and at least.
_CANDIDATES: Final = 4
_LEAST_CANDIDATES: Final = 50
_WINDOWS_PER_PICTURE: Final = 6  # asked for at first, for each candidate
_REGION_PLAN: Final = WindowPlan((1.0,), 1)  # one window: the square itself


@dataclass(frozen=True)
class Answer:
    """One picture that was found."""

    key: str
    # A cosine: of the whole picture less what its collection has in common, or the mean of that
    # and the one of its parts (`parts_score`), or the mean of its best windows.
    score: float
    box: Box | None = None  # the window nearest to the query
    scale: float | None = None
    boxes: FloatArray | None = None  # (n, 4) all windows
    cosines: FloatArray | None = None  # (n,) of each with the query


@dataclass(frozen=True)
class Sought:
    """A whole picture as a query."""

    vector: FloatArray  # (E,)
    # (n, E) of its coarse windows, of length 1; None where the index holds no windows
    parts: npt.NDArray[np.floating] | None = None


def read_query(image: str) -> bytes:
    """The bytes of a picture named by a path, or by a key of an index.

    Raises:
        SourceError: There is none.
    """
    found = read_keys([image])
    if image not in found:
        raise SourceError(f"cannot read {image}")
    return found[image]


def embed_picture(data: bytes, embedder: Embedder, index: NeighborIndex) -> Sought:
    """A whole picture, as the index holds them.

    Raises:
        ImageError: The bytes are not a usable picture.
        DigestMismatchError: The embedder's vectors are of another space than the index.
    """
    output = index.space.output
    index.space.check(embedder.origin.space(output))
    found = _embed_one(data, embedder)
    if isinstance(found, PictureWindows):
        return Sought(np.asarray(found.whole), found.coarse)
    return Sought(found[output])


def embed_region(
    data: bytes, region: Box, embedder: WindowEmbedder, index: NeighborIndex
) -> FloatArray:
    """The (E,) vector of a part of a picture, as the index holds windows.

    It is the mean of the vectors of two squares, with a little and with more of what is around.

    Raises:
        RegionError: It is no rectangle inside the picture.
        ImageError: The bytes are not a usable picture.
        DigestMismatchError: The embedder's vectors are of another space than the index.
    """
    index.space.check(embedder.origin.space(index.space.output))
    vectors = []
    for square in cut_squares(data, region):
        found = _embed_one(square, embedder.with_plan(_REGION_PLAN))
        if not isinstance(found, PictureWindows):
            raise EngineError("the model gives no windows")
        vectors.append(found.vectors[0].astype(np.float32))
    return combine(vectors)


def stored_picture(image: str, index: NeighborIndex) -> Sought | None:
    """A picture as an index holds it, None where it does not or the file has changed."""
    key = image if "#" in image else str(Path(image).resolve())
    row = next((row for row in index.rows(key) if row.key == key), None)
    if row is None:
        return None
    data = read_keys([key]).get(key)
    if data is not None and hashlib.sha256(data).hexdigest() != row.content_hash:
        return None
    vector, windows = index.vectors([key]).get(key), index.windows([key]).get(key)
    return None if vector is None else Sought(vector, None if windows is None else windows.coarse)


def combine(likes: Sequence[FloatArray], unlikes: Sequence[FloatArray] = ()) -> FloatArray:
    """One query of several: the mean of what is wanted, less a part of what is not.

    Args:
        likes: (E,) each, at least one.
        unlikes: (E,) each.
    """
    query = _unit(np.stack(likes)).mean(axis=0)
    if unlikes:
        query = query - UNLIKE * _unit(np.stack(unlikes)).mean(axis=0)
    return _unit(query)


def find_neighbors(
    data: bytes,
    embedder: Embedder,
    index: NeighborIndex,
    *,
    count: int,
    exact: bool = False,
    where: Sequence[Condition] = (),
) -> Neighbors:
    """The pictures of an index nearest to a picture, as `find_pictures` has them.

    Args:
        data: A whole file.
        embedder: Must make the index's output.
        index: Where to look.
        count: How many pictures.
        exact: Compare every row even where an approximate index exists.
        where: What the pictures must meet.

    Raises:
        ImageError: The bytes are not a usable picture.
        DigestMismatchError: The embedder's vectors are of another space than the index.
    """
    query = embed_picture(data, embedder, index)
    answers = find_pictures(query, index, count=count, exact=exact, where=where)
    scores = np.array([answer.score for answer in answers], np.float32)
    return Neighbors(tuple(answer.key for answer in answers), scores)


def in_common(index: NeighborIndex) -> FloatArray:
    """(E,) what the pictures of an index have in common: about their mean, zeros where none are."""
    return shrunk_mean(index.sample(_SAMPLE), len(index))


def shrunk_mean(vectors: FloatArray, count: int) -> FloatArray:
    """(E,) the mean of some of so many vectors, the nearer to zero the fewer these are.

    Args:
        vectors: (n, E), zero or more.
        count: Of all that they stand for.
    """
    mean: FloatArray = vectors.sum(axis=0) / max(1, len(vectors))
    return mean * np.float32(count / (count + _FEW))


def find_pictures(
    query: Sought,
    index: NeighborIndex,
    *,
    count: int,
    exact: bool = False,
    where: Sequence[Condition] = (),
) -> list[Answer]:
    """The pictures most like one as wholes, and where each is nearest to it.

    Both are compared less what the collection has in common. With parts in the query and windows
    in the index, the nearest few are put in order by how well their parts agree too.
    """
    common = in_common(index)
    wanted, vector = max(count, COMPARED), _unit(query.vector - common)
    (found,) = index.search(vector[None], wanted, space=index.space, exact=exact, where=where)
    vectors, windows = index.vectors(found.keys), index.windows(found.keys)
    answers = []
    for key in found.keys:
        if key not in vectors:
            continue  # removed meanwhile
        score, parts = float(_unit(vectors[key] - common) @ vector), windows.get(key)
        if query.parts is not None and parts is not None:
            score = (score + parts_score(parts.vectors, query.parts, common)) / 2
        answers.append(_answer(key, score, query.vector, parts))
    answers.sort(key=lambda answer: -answer.score)  # stable: equal ones as they were found
    return answers[:count]


def find_windows(
    query: FloatArray,
    index: NeighborIndex,
    *,
    count: int,
    exact: bool = False,
    where: Sequence[Condition] = (),
) -> list[Answer]:
    """The pictures that have windows nearest to a vector, by the mean of their best few.

    Raises:
        IndexStoreError: The index holds no windows.
    """
    candidates = _candidates(query, index, count, exact, where)
    answers = [
        _answer(key, pooled_score(windows.vectors, query), query, windows)
        for key, windows in index.windows(candidates).items()
    ]
    answers.sort(key=lambda answer: (-answer.score, answer.key))
    return answers[:count]


def parts_score(
    vectors: npt.NDArray[np.floating], parts: npt.NDArray[np.floating], common: FloatArray
) -> float:
    """How well a picture holds the parts of another: the mean of each one's best cosine.

    Args:
        vectors: (n, E) of length 1, its windows.
        parts: (m, E) of length 1.
        common: (E,) what is taken off all of them.
    """
    cosines = _unit(parts.astype(np.float32) - common) @ _unit(vectors - common).T
    return float(cosines.max(axis=1).mean())


def pooled_score(vectors: npt.NDArray[np.floating], query: FloatArray) -> float:
    """What a picture's windows say together: the mean cosine of the best few.

    Args:
        vectors: (n, E) of length 1.
        query: (E,) of length 1.
    """
    cosines = np.sort(vectors.astype(np.float32) @ query)[-BEST_WINDOWS:]
    return float(cosines.mean())


def _candidates(
    query: FloatArray,
    index: NeighborIndex,
    count: int,
    exact: bool,
    where: Sequence[Condition],
) -> tuple[str, ...]:
    """The pictures of the nearest windows: several for each one asked for."""
    pictures = max(_LEAST_CANDIDATES, _CANDIDATES * count)
    wanted, total = pictures * _WINDOWS_PER_PICTURE, index.window_count
    while True:
        (found,) = index.search_windows(
            query[None], wanted, space=index.space, exact=exact, where=where
        )
        keys = tuple(dict.fromkeys(found.keys))
        if len(keys) >= count or len(found.keys) < wanted or wanted >= total:
            return keys[:pictures]
        wanted *= 4


def _answer(key: str, score: float, query: FloatArray, windows: PictureWindows | None) -> Answer:
    if windows is None:
        return Answer(key, score)
    cosines = windows.vectors.astype(np.float32) @ query
    best = int(cosines.argmax())
    x0, y0, x1, y1 = (float(edge) for edge in windows.boxes[best])
    return Answer(key, score, (x0, y0, x1, y1), float(windows.scales[best]), windows.boxes, cosines)


def _embed_one(data: bytes, embedder: Embedder) -> dict[str, FloatArray] | PictureWindows:
    (found,) = embedder.embed([embedder.prepare(data)])
    if isinstance(found, ImageFailure):
        raise _as_error(found)
    return found if isinstance(found, PictureWindows) else dict(found)


def _as_error(failure: ImageFailure) -> ImageError | EngineError:
    try:
        return ImageError(failure.code)
    except KeyError:
        return EngineError(failure.message)


def _unit(vectors: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not lengths.all():
        raise IndexStoreError("what is wanted and what is not are the same: nothing is left")
    unit: FloatArray = (vectors / lengths).astype(np.float32)
    return unit
