"""Proof, on the CPU that serves, that an engine gives the vectors its certificate vouches for.

Knows no HTTP; run at load, and again by the readiness check.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from amdim_clients.contract import Certificate, Tolerance
from amdim_serving.engines import Engine
from amdim_serving.errors import CanaryError

Encode = Callable[[NDArray[np.uint8], Sequence[str]], Mapping[str, NDArray[np.float32]]]
"""As `Engine.encode`."""


def check_canaries(engine: Engine, certificate: Certificate) -> float:
    """Runs the certificate's canaries and returns the worst cosine of any image.

    Raises:
        CanaryError: An output is missing, of another shape, not finite, or too far from fp32.
        EngineError: The engine failed on them.
    """
    size, default = engine.spec.max_batch_size, engine.spec.default_output
    worst = run_canaries(engine.encode, certificate, batch_size=size)
    if len(certificate.expected) == 1:
        return worst
    # an engine may have another way to the default output alone: the one that most requests take
    alone = dataclasses.replace(certificate, expected={default: certificate.expected[default]})
    return min(worst, run_canaries(engine.encode, alone, batch_size=size))


def run_canaries(encode: Encode, certificate: Certificate, *, batch_size: int) -> float:
    """Runs the certificate's canaries through a call; as `check_canaries`."""
    names = list(certificate.expected)
    pixels, size = certificate.pixels, batch_size
    parts = [encode(pixels[at : at + size], names) for at in range(0, len(pixels), size)]
    got = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return compare_canaries(got, certificate)


def compare_canaries(got: Mapping[str, NDArray[np.float32]], certificate: Certificate) -> float:
    """Compares the first canaries' vectors with the certificate's; returns the worst cosine.

    Args:
        got: Each output of the certificate, for as many of its canaries as were run.
        certificate: Says what is expected, and how near.

    Raises:
        CanaryError: An output is of another shape, not finite, or too far from fp32.
    """
    return min(
        _compare(name, got[name], want[: len(got[name])], certificate.tolerance)
        for name, want in certificate.expected.items()
    )


def _compare(
    name: str, got: NDArray[np.float32], want: NDArray[np.float32], tolerance: Tolerance
) -> float:
    """Returns the worst cosine of one output's images."""
    if got.shape != want.shape:
        raise CanaryError(f"the engine's {name} has another shape than its certificate's")
    if not np.isfinite(got).all():
        raise CanaryError(f"the engine's {name} is not finite on the canaries")
    largest = float(np.abs(want).max())
    error = float(np.abs(got - want).max())
    cosine = float(_cosines(got, want).min())
    if error > tolerance.max_relative_error * largest or cosine < tolerance.min_cosine:
        raise CanaryError(
            f"the engine does not reproduce the certificate's {name} "
            f"(worst cosine {cosine:.6f}, worst error {error / largest:.2e} of the largest value)",
            cosine=cosine,
        )
    return cosine


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of every image's whole output, in float64; 0 where one of the two is zero."""
    x = a.reshape(len(a), -1).astype(np.float64)
    y = b.reshape(len(b), -1).astype(np.float64)
    dots = np.einsum("nd,nd->n", x, y)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosines: NDArray[np.float64] = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return cosines
