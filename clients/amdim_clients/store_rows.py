"""What stores do alike with rows, whatever keeps them.

A picture counts once its own row is there, and a window only while it is of the content that this
row names: so what a killed writer left is never shown, and can be told from the rest. Knows no
store, no pictures and no encoder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from amdim_clients.neighbors import FloatArray, StoredRow
from amdim_clients.window_rows import PictureWindows

# Windows asked for beyond those wanted, where a killed writer may have left some that do not count.
_SPARE: Final = 1.5
_GROWTH: Final = 4

# Of which picture a window is: key and content hash.
Owner: TypeAlias = tuple[str, str]
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Leftovers:
    """What a killed writer left in an index."""

    short: list[str]  # keys of pictures that have fewer or more windows than their row says
    strays: dict[str, str | None]  # keys of windows that do not count -> the content that does


def window_counts(
    windows: Sequence[PictureWindows] | None, pictures: int
) -> list[int] | list[None]:
    """How many windows each of so many pictures has; None each where none were made."""
    return [None] * pictures if windows is None else [len(each) for each in windows]


def spread(count: int, total: int) -> list[int]:
    """So many positions at most, evenly from the first of a total to the last."""
    return [int(at) for at in np.linspace(0, total - 1, min(count, total))]


def counting(owners: Iterable[Owner], contents: Mapping[str, str]) -> list[int]:
    """Positions of the windows that count.

    Args:
        owners: Of windows.
        contents: Key to content hash, of the pictures that are there.
    """
    return [at for at, (key, content) in enumerate(owners) if contents.get(key) == content]


def nearest_counting(
    ask: Callable[[int], tuple[_Found, Sequence[Owner]]],
    contents: Callable[[Iterable[str]], Mapping[str, str]],
    *,
    count: int,
    total: int,
) -> tuple[_Found, list[int]]:
    """The nearest windows that count, asking for more as long as too many do not.

    Args:
        ask: Gives so many of the nearest windows, and their owners, best first.
        contents: Gives the content hashes of the pictures with these keys.
        count: How many windows are wanted.
        total: How many the store holds.

    Returns:
        What `ask` gave last, and the positions in it of at most `count` that count.
    """
    wanted = int(count * _SPARE)
    while True:
        found, owners = ask(wanted)
        kept = counting(owners, contents({key for key, _ in owners}))
        if len(kept) >= count or len(owners) < wanted or wanted >= total:
            return found, kept[:count]
        wanted *= _GROWTH


def leftovers(rows: Iterable[StoredRow], owners: Iterable[Owner]) -> Leftovers:
    """What does not belong together in a store.

    Args:
        rows: Every picture.
        owners: Of every window.
    """
    held = Counter(owners)
    sound: dict[str, str] = {}
    short: list[str] = []
    for row in rows:
        if row.windows is None or held[row.key, row.content_hash] == row.windows:
            sound[row.key] = row.content_hash
        else:
            short.append(row.key)
    strays = {key for key, content in held if sound.get(key) != content}.difference(short)
    return Leftovers(short, {key: sound.get(key) for key in sorted(strays)})


def as_cosines(values: npt.ArrayLike) -> FloatArray:
    """Cosines as float32; rounding can leave that of two equal vectors a little above 1."""
    cosines: FloatArray = np.clip(np.asarray(values, np.float32), -1, 1)
    return cosines


def chunks(items: Iterable[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """The items in order, so many at a time."""
    held: Sequence[Any] = items if isinstance(items, Sequence) else list(items)
    for start in range(0, len(held), size):
        yield held[start : start + size]
