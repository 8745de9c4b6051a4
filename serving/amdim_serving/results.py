"""What becomes of a request's images inside the server; plain data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from amdim_serving.errors import ItemError


@dataclass(slots=True)
class Timings:
    """Seconds of a request's slowest image in each stage."""

    decode: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    encode: float = 0.0


@dataclass(slots=True)
class Embedded:
    """One image's vectors by output, float32, and the upright size of its picture."""

    vectors: dict[str, NDArray[np.float32]]
    width: int
    height: int


@dataclass(slots=True)
class EmbedResult:
    """A request's images in its order, each embedded or failed alone."""

    items: list[Embedded | ItemError] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)
