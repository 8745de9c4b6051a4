"""Measures what OpenVINO makes of an artifact at the precisions of this machine's processor.

OpenVINO is an extra, imported only where it is used. Knows no repository.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amdim_export.certificate import CANARY_TOLERANCES, Canaries
from amdim_export.errors import UnavailableError
from amdim_export.names import MODEL_FILE
from amdim_export.parity import Pixels, Tolerance, Vectors, agreement, measure
from amdim_export.precision import CertifiedPrecision, canary_tolerance

if TYPE_CHECKING:
    from amdim_export.openvino_runtime import OpenVinoEncoder

ENGINE = "openvino"
BATCHES = (1, 2, 7, 16)
TIMED_BATCH = 16
_ROUNDS = 24


@contextmanager
def opened(
    model: bytes, *, compute: str = "fp32", threads: int = 0, only: str = ""
) -> Iterator[OpenVinoEncoder]:
    """Yields a file's bytes compiled by OpenVINO; see `OpenVinoEncoder`.

    Raises:
        UnavailableError: OpenVINO is not installed.
        GraphError: It cannot load the file.
    """
    try:
        from amdim_export.openvino_runtime import OpenVinoEncoder
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "OpenVINO is not installed: pip install 'amdim-embed[openvino]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="amdim-openvino-") as folder:
        path = Path(folder) / MODEL_FILE
        path.write_bytes(model)
        yield OpenVinoEncoder(path, compute=compute, threads=threads, only=only)


def bf16_runs_here() -> bool:
    """Whether OpenVINO is installed and this processor computes in bf16."""
    try:
        from amdim_export.openvino_runtime import core
    except ModuleNotFoundError:
        return False
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def certify_bf16(
    model: bytes,
    expected: Vectors,
    pixels: Pixels,
    canaries: Canaries,
    *,
    default_output: str,
    source: str,
) -> CertifiedPrecision:
    """Returns what running an fp32 file in bf16 does; unmeasured where this CPU cannot.

    Args:
        model: The file's bytes.
        expected: The trained encoder's outputs of `pixels`.
        pixels: (N, S, S, 3) uint8; none leaves it unmeasured, since drawn ones prove nothing.
        canaries: The certificate's.
        default_output: What neighbours are searched by.
        source: Which pictures these are, in words.
    """
    usual = CANARY_TOLERANCES["bf16"]
    if not len(pixels) or not bf16_runs_here():
        return CertifiedPrecision("bf16", ENGINE, usual)
    with opened(model, compute="bf16") as encode:
        parity = measure(expected, encode, pixels, batches=BATCHES, default_output=default_output)
        given = encode(canaries.pixels)
    speedup = measure_speedup(model, model, pixels, default_output, compute="bf16")
    here = canary_tolerance(
        {name: agreement(value, given[name]) for name, value in canaries.vectors.items()}
    )
    tolerance = Tolerance(
        max(usual.max_relative_error, here.max_relative_error),
        min(usual.min_cosine, here.min_cosine),
    )
    return CertifiedPrecision("bf16", ENGINE, tolerance, parity, speedup, source)


def measure_speedup(
    plain: bytes, fast: bytes, pixels: Pixels, output: str, *, compute: str = "fp32"
) -> float:
    """Returns how many times as fast a file is as one in fp32, at batch 16 on one thread.

    Both compute one output alone, as they do where they are served. The best of several turns of
    each counts: what else the machine does only ever adds.

    Args:
        plain: The file in fp32.
        fast: The other.
        pixels: (N, S, S, 3) uint8.
        output: The one that is computed.
        compute: What the other's float layers compute in.
    """
    batch = np.ascontiguousarray(pixels[np.arange(TIMED_BATCH) % len(pixels)])
    best = [float("inf"), float("inf")]
    with (
        opened(plain, threads=1, only=output) as one,
        opened(fast, compute=compute, threads=1, only=output) as other,
    ):
        for _ in range(_ROUNDS):
            for index, encode in enumerate((one, other)):
                started = time.perf_counter()
                encode(batch)
                best[index] = min(best[index], time.perf_counter() - started)
    return best[0] / best[1]
