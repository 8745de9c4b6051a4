"""How far an artifact's vectors are from the encoder's, and whether that is near enough.

Knows arrays only: neither torch nor ONNX, nor where pictures come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from amdim_export.errors import ParityError

Pixels = npt.NDArray[np.uint8]
Vectors = Mapping[str, npt.NDArray[np.float32]]
Encode = Callable[[Pixels], Vectors]

NEIGHBORS = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Agreement:
    """What two versions of one output have in common.

    Attributes:
        max_abs_error: Largest difference of any value.
        largest_value: Largest magnitude of the expected values.
        mean_cosine: Over all vectors; a map counts one vector per location.
        p1_cosine: 1st percentile.
        min_cosine: The worst.
    """

    max_abs_error: float
    largest_value: float
    mean_cosine: float
    p1_cosine: float
    min_cosine: float

    @property
    def relative_error(self) -> float:
        """Largest difference as a share of the largest value."""
        if self.largest_value == 0.0:
            return 0.0 if self.max_abs_error == 0.0 else float("inf")
        return self.max_abs_error / self.largest_value


@dataclasses.dataclass(frozen=True, slots=True)
class Tolerance:
    """What an output must hold to be called the same."""

    max_relative_error: float = 1e-4
    min_cosine: float = 0.999999


@dataclasses.dataclass(frozen=True, slots=True)
class Parity:
    """An artifact measured against the encoder.

    Attributes:
        outputs: By output name.
        neighbor_agreement: Mean share of the 10 nearest pictures (by cosine of the default
            output, among those measured) that both find; fewer where fewer pictures exist.
        images: How many different pictures were measured.
        batches: Batch sizes that were run.
    """

    outputs: Mapping[str, Agreement]
    neighbor_agreement: float
    images: int
    batches: tuple[int, ...]


def agreement(expected: npt.NDArray[np.float32], actual: npt.NDArray[np.float32]) -> Agreement:
    """Compares vectors (..., F) with the ones they should be; computed in float64.

    Raises:
        ParityError: The shapes differ, or a value is not finite.
    """
    if expected.shape != actual.shape:
        raise ParityError(f"expected shape {expected.shape}, got {actual.shape}")
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        raise ParityError("a vector holds a value that is not finite")
    a = expected.reshape(-1, expected.shape[-1]).astype(np.float64)
    b = actual.reshape(-1, actual.shape[-1]).astype(np.float64)
    cosines = _cosines(a, b)
    return Agreement(
        max_abs_error=float(np.abs(a - b).max()),
        largest_value=float(np.abs(a).max()),
        mean_cosine=float(cosines.mean()),
        p1_cosine=float(np.percentile(cosines, 1)),
        min_cosine=float(cosines.min()),
    )


def worst(found: Sequence[Agreement]) -> Agreement:
    """Returns the worst of several comparisons of one output, and the mean of their means."""
    return Agreement(
        max_abs_error=max(one.max_abs_error for one in found),
        largest_value=max(one.largest_value for one in found),
        mean_cosine=sum(one.mean_cosine for one in found) / len(found),
        p1_cosine=min(one.p1_cosine for one in found),
        min_cosine=min(one.min_cosine for one in found),
    )


def neighbor_agreement(
    expected: npt.NDArray[np.float32], actual: npt.NDArray[np.float32], k: int = NEIGHBORS
) -> float:
    """Returns the mean share of each picture's k nearest that both (N, F) arrays agree on."""
    k = min(k, len(expected) - 1)
    if k < 1:
        return 1.0
    a, b = _nearest(expected, k), _nearest(actual, k)
    return float(np.mean([len(set(r) & set(s)) / k for r, s in zip(a, b, strict=True)]))


def measure(
    expected: Vectors,
    encode: Encode,
    pixels: Pixels,
    *,
    batches: Sequence[int],
    default_output: str,
) -> Parity:
    """Runs an artifact on pictures at several batch sizes and compares everything it says.

    Args:
        expected: The encoder's own outputs of `pixels`, by name.
        encode: The artifact.
        pixels: (N, S, S, 3); batches larger than N repeat pictures.
        batches: Every size is run at least once; what is left over runs at the largest.
        default_output: What neighbours are searched by.

    Raises:
        ParityError: An output is missing, of another shape, or not finite.
    """
    order = [np.arange(size) % len(pixels) for size in batches]
    largest = max(batches)
    order += [
        np.arange(start, min(start + largest, len(pixels)))
        for start in range(0, len(pixels), largest)
    ]
    collected: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in expected}
    for index in order:
        given = encode(pixels[index])
        for name in expected:
            if name not in given:
                raise ParityError(f"the artifact has no output {name}")
            collected[name].append(given[name])
    rows = np.concatenate(order)
    outputs = {}
    for name, parts in collected.items():
        try:
            outputs[name] = agreement(expected[name][rows], np.concatenate(parts))
        except (ParityError, ValueError) as error:
            raise ParityError(f"{name}: {error}") from error
    again = np.concatenate(collected[default_output])[-len(pixels) :]  # the last, in order
    return Parity(
        outputs,
        neighbor_agreement(_flat(expected[default_output]), _flat(again)),
        len(pixels),
        tuple(batches),
    )


def require(parity: Mapping[str, Agreement], tolerance: Tolerance) -> None:
    """Refuses vectors that are not near enough.

    Raises:
        ParityError: Names the output and by how much it is off.
    """
    for name, found in parity.items():
        if not found.relative_error <= tolerance.max_relative_error:  # also refuses NaN
            raise ParityError(
                f"{name} differs by {found.relative_error:.2e} of its largest value; "
                f"at most {tolerance.max_relative_error:.0e} is allowed"
            )
        if not found.min_cosine >= tolerance.min_cosine:
            raise ParityError(
                f"{name} has a vector of cosine {found.min_cosine:.7f} to the encoder's; "
                f"at least {tolerance.min_cosine} is required"
            )


def _cosines(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (np.abs(a).max(axis=1) == 0) & (np.abs(b).max(axis=1) == 0)
    cosines = (a * b).sum(axis=1) / np.where(lengths == 0, 1.0, lengths)
    return np.asarray(np.where(both_zero, 1.0, cosines))


def _nearest(vectors: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.intp]:
    unit = vectors.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-30)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def _flat(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return vectors.reshape(len(vectors), -1)
