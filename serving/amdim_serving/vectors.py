"""A batch's vectors with their lengths: what makes a vector usable, and unit.

Knows no request: lengths are computed once per batch, on the engine's thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amdim_serving.engines import Engine

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VectorBatch:
    """A batch as it left the engine.

    Attributes:
        vectors: Each output, (N, ..., D) float32.
        norms: The length of each vector, (N, ...) float32.
        usable: (N,) bool per output: every vector of the image is finite and not zero.
    """

    vectors: Mapping[str, Vectors]
    norms: Mapping[str, Vectors]
    usable: Mapping[str, NDArray[np.bool_]]

    def is_usable(self, row: int, outputs: Sequence[str]) -> bool:
        """Whether an image's vectors may be sent."""
        return all(bool(self.usable[name][row]) for name in outputs)

    def take(self, row: int, output: str, *, normalize: bool) -> Vectors:
        """Returns one image's vectors of one output, (..., D) float32, C order."""
        vectors: Vectors = self.vectors[output][row]
        if normalize:
            vectors = vectors / self.norms[output][row][..., None]
        return vectors


def encode_batch(
    engine: Engine, images: Sequence[NDArray[np.uint8]], outputs: Sequence[str]
) -> VectorBatch:
    """Encodes images and measures their vectors.

    Args:
        engine: Whose `max_batch_size` is at least the number of images.
        images: Each (S, S, 3) uint8.
        outputs: The union of what the images ask for.

    Raises:
        EngineError: The engine failed.
    """
    vectors = engine.encode(np.stack(images), outputs)
    norms: dict[str, Vectors] = {}
    usable: dict[str, NDArray[np.bool_]] = {}
    for name, array in vectors.items():
        # A length that overflows is as unusable as one that is not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.sqrt(np.einsum("...d,...d->...", array, array))
        norms[name] = lengths
        good = np.isfinite(lengths) & (lengths > 0)
        usable[name] = good.reshape(len(images), -1).all(axis=1)
    return VectorBatch(vectors, norms, usable)
