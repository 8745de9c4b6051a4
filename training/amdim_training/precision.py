"""How this machine trains fastest: fp32 or bf16, found out by running a few steps of each.

bf16 wins where the CPU multiplies it natively (AMX, AVX512-BF16) and on GPUs, and loses elsewhere,
so nothing but a measurement on the machine at hand decides.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

import torch

from amdim_training.config import Precision

_log = logging.getLogger(__name__)


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[None]:
    """Returns the context an encoder's forward pass runs in; losses stay outside it."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def choose_precision(
    wanted: Precision, run_step: Callable[[Precision], object], *, repeats: int = 3
) -> Precision:
    """Returns `wanted`, or for `auto` the faster of fp32 and bf16.

    Args:
        wanted: A precision by name, or `auto`.
        run_step: Makes one whole training step at a precision and waits for it.
        repeats: Timed steps of each, after one untimed; the fastest counts.
    """
    if wanted != "auto":
        return wanted
    seconds: dict[Precision, float] = {}
    for precision in ("fp32", "bf16"):
        run_step(precision)
        seconds[precision] = min(_time(run_step, precision) for _ in range(repeats))
    chosen = min(seconds, key=seconds.__getitem__)
    _log.info(
        "precision auto: a step takes %.3f s in fp32 and %.3f s in bf16; %s it is",
        seconds["fp32"], seconds["bf16"], chosen,
    )  # fmt: skip
    return chosen


def _time(run_step: Callable[[Precision], object], precision: Precision) -> float:
    start = time.perf_counter()
    run_step(precision)
    return time.perf_counter() - start
