"""How this machine trains fastest: fp32 or bf16, compiled or not, found out by a few steps of each.

bf16 wins where the CPU multiplies it natively (AMX, AVX512-BF16) and on GPUs, and loses elsewhere;
torch.compile needs a C++ compiler and pays on some encoders only. So nothing but a measurement on
the machine at hand decides.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from amdim_training.config import Precision

_CLEARLY = 0.97
"""A compiled step must take at most so much of an eager one's time to be worth compiling."""

_Choice = TypeVar("_Choice", Precision, bool)

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


def choose_compiled(
    wanted: bool | Literal["auto"], run_step: Callable[[bool], object], *, repeats: int = 3
) -> bool:
    """Returns `wanted`, or for `auto` whether a compiled step is clearly faster here.

    Args:
        wanted: Whether to compile, or `auto`.
        run_step: Makes one whole training step, compiled or not, and waits for it.
        repeats: Timed steps of each, after one untimed; the fastest counts.
    """
    if wanted != "auto":
        return wanted
    run_step(False)
    eager = min(_time(run_step, False) for _ in range(repeats))
    try:
        run_step(True)
    except Exception as error:  # no compiler, no backend, an operator it cannot take: all the same
        reason = str(error).strip().partition("\n")[0]
        _log.warning("compile auto: it does not work here (%s), so steps run as they are", reason)
        run_step(False)
        return False
    compiled = min(_time(run_step, True) for _ in range(repeats))
    chosen = compiled < _CLEARLY * eager
    _log.info(
        "compile auto: a step takes %.3f s as it is and %.3f s compiled; %s",
        eager, compiled, "compiled it is" if chosen else "not compiled",
    )  # fmt: skip
    return chosen


def _time(run_step: Callable[[_Choice], object], choice: _Choice) -> float:
    start = time.perf_counter()
    run_step(choice)
    return time.perf_counter() - start
