"""What a machine's cores can do of the two parts alone: decoding pictures, and encoding pixels.

Knows no server. Each part gets every core for itself; together they can do, at most about,
1 / (1/decode + 1/engine) images a second, as if the cores did one and then the other.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from amdim_clients.images import Preprocess, decode_image
from amdim_serving.engines import Engine

CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Rate:
    """Images a second on every core, and CPU seconds an image."""

    images_per_s: float
    cpu_s: float


def rate_of(work: Callable[[], int], seconds: float) -> Rate:
    """Calls `work`, which returns how many images it did, for so long."""
    work()
    images = 0
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        images += work()
    return Rate(images / (time.perf_counter() - wall), (time.process_time() - cpu) / max(1, images))


def decode_alone(preprocess: Preprocess, bodies: Sequence[bytes], seconds: float) -> Rate:
    """Decodes on as many threads as cores."""
    with ThreadPoolExecutor(CORES) as pool:

        def work() -> int:
            return len(list(pool.map(lambda body: decode_image(body, preprocess), bodies)))

        return rate_of(work, seconds)


def engine_alone(engine: Engine, seconds: float, *, batch: int = 16) -> Rate:
    """Encodes full batches, as many calls at once as the engine takes."""
    spec = engine.spec
    batch = min(batch, spec.max_batch_size)
    shape = (batch, spec.image_size, spec.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    calls = engine.info.calls

    def call(_: int) -> int:
        engine.encode(images, (spec.default_output,))
        return batch

    with ThreadPoolExecutor(calls) as pool:
        return rate_of(lambda: sum(pool.map(call, range(4 * calls))), seconds)


def decode_and_engine_ms(engine: Engine, bodies: Sequence[bytes], seconds: float) -> float:
    """Median milliseconds of one photo through both, one after the other, nothing around them."""
    spec = engine.spec
    spent: list[float] = []
    end = time.perf_counter() + seconds
    for body in itertools.cycle(bodies):
        started = time.perf_counter()
        pixels = decode_image(body, spec.preprocess).pixels
        engine.encode(pixels[None], (spec.default_output,))
        spent.append(1e3 * (time.perf_counter() - started))
        if time.perf_counter() > end:
            return float(np.median(spent))
    raise ValueError("there are no photos")


def bound_of(decode: Rate, engine: Rate) -> float:
    """Images a second that both can do together on the same cores."""
    return 1 / (1 / decode.images_per_s + 1 / engine.images_per_s)
