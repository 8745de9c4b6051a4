"""Pictures of an index that are near-duplicates of one another.

The same picture re-encoded, resized, a little cropped or recoloured: pairs whose vectors are
nearer than different pictures' are, joined into groups. Knows no pixels and no storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from amdim_clients.neighbors import FloatArray, NeighborIndex

# Cosine above which two pictures count as one: measured by benchmarks/search.py on photographs
# and variants of them.
THRESHOLD: Final = 0.8
# Neighbours looked at for each picture: groups may be larger, since they are joined.
_NEIGHBORS: Final = 10
_BATCH: Final = 256


@dataclass(frozen=True)
class Group:
    """Pictures that are one another's near-duplicates."""

    keys: tuple[str, ...]  # in order of their names, two at least
    least: float  # the lowest cosine by which one of them was joined


def find_duplicates(
    index: NeighborIndex, root: str = "/", *, threshold: float = THRESHOLD, exact: bool = False
) -> list[Group]:
    """Groups of near-duplicates below a folder, the surest first.

    Args:
        index: Of whole pictures, with windows or without.
        root: A folder, pack or file.
        threshold: Least cosine of two duplicates.
        exact: Compare every row even where an approximate index exists.
    """
    parent: dict[str, str] = {}
    least: dict[str, float] = {}
    for key, other, score in _pairs(index, root, threshold, exact):
        first, second = sorted((_root(parent, key), _root(parent, other)))
        lowest = min(least.get(first, 1.0), least.get(second, 1.0), score)
        if first != second:
            parent[second] = first
            least[first] = lowest
    groups: dict[str, list[str]] = {}
    for key in parent:
        groups.setdefault(_root(parent, key), []).append(key)
    found = [Group(tuple(sorted(keys)), least[first]) for first, keys in groups.items()]
    return sorted((g for g in found if len(g.keys) > 1), key=lambda g: (-g.least, g.keys))


def near_pairs(keys: Sequence[str], vectors: FloatArray, threshold: float) -> set[tuple[str, str]]:
    """All pairs of some pictures that are duplicates, by exact comparison.

    Args:
        keys: One for each row.
        vectors: (N, E) of length 1.
        threshold: Least cosine of two duplicates.
    """
    near = np.argwhere(vectors @ vectors.T >= threshold)
    return {(keys[first], keys[second]) for first, second in near if first < second}


def _pairs(
    index: NeighborIndex, root: str, threshold: float, exact: bool
) -> Iterator[tuple[str, str, float]]:
    batch: list[str] = []
    for row in index.rows(root):
        batch.append(row.key)
        if len(batch) == _BATCH:
            yield from _pairs_of(index, batch, threshold, exact)
            batch = []
    yield from _pairs_of(index, batch, threshold, exact)


def _pairs_of(
    index: NeighborIndex, keys: Sequence[str], threshold: float, exact: bool
) -> Iterator[tuple[str, str, float]]:
    vectors = index.vectors(keys)
    if not vectors:
        return
    queries = np.stack(list(vectors.values()))
    found = index.search(queries, _NEIGHBORS + 1, space=index.space, exact=exact)
    for key, neighbors in zip(vectors, found, strict=True):
        for other, score in zip(neighbors.keys, neighbors.scores, strict=True):
            if other != key and score >= threshold:
                yield key, other, float(score)


def _root(parent: dict[str, str], key: str) -> str:
    """The first key of a group; the way there is shortened as it is walked."""
    parent.setdefault(key, key)
    while parent[key] != key:
        parent[key] = parent[parent[key]]
        key = parent[key]
    return key
