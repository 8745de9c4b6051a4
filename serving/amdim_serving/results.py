"""What becomes of a request's images inside the server; plain data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from amdim_clients.windows import WindowGrid
from amdim_serving.errors import ItemError


@dataclass(slots=True)
class Timings:
    """Seconds of a request's slowest image in each stage."""

    decode: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    encode: float = 0.0

    def merge(self, other: Timings) -> None:
        """Keeps the longer time of each stage."""
        self.decode = max(self.decode, other.decode)
        self.queue = max(self.queue, other.queue)
        self.infer = max(self.infer, other.infer)


@dataclass(frozen=True, slots=True)
class WindowVectors:
    """The vectors of a picture's windows at one scale."""

    grid: WindowGrid
    vectors: NDArray[np.float32]
    """(h, w, E)."""


@dataclass(slots=True)
class Embedded:
    """One image's vectors by output, float32, and the upright size of its picture."""

    vectors: dict[str, NDArray[np.float32]]
    width: int
    height: int
    windows: tuple[WindowVectors, ...] | None = None
    """By scale; None where they were not asked for."""


@dataclass(slots=True)
class EmbedResult:
    """A request's images in its order, each embedded or failed alone."""

    items: list[Embedded | ItemError] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)
