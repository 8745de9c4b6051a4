"""How this machine trains fastest: precision, order of channels, compiled or not, by a few steps.

bf16 wins where the CPU multiplies it natively (AMX, AVX512-BF16) and on GPUs, and loses elsewhere;
channels_last mostly wins, not everywhere; torch.compile needs a C++ compiler and pays on some
encoders only. So nothing but a measurement on the machine at hand decides.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from amdim_training.config import MemoryFormat, Precision

_CLEARLY = 0.97
"""A compiled step must take at most so much of an eager one's time to be worth compiling."""

_AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}

_Choice = TypeVar("_Choice", Precision, MemoryFormat, bool)

_log = logging.getLogger(__name__)


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[None]:
    """Returns the context an encoder's forward pass runs in; losses stay outside it."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, _AUTOCAST[precision])
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
    choices: tuple[Precision, ...] = ("fp32", "bf16")
    return _fastest("precision", choices, run_step, repeats)


def choose_memory_format(
    wanted: MemoryFormat, run_step: Callable[[MemoryFormat], object], *, repeats: int = 3
) -> MemoryFormat:
    """Returns `wanted`, or for `auto` the faster order of an image's values in memory.

    Args:
        wanted: `channels_last`, `contiguous` (channels first) or `auto`.
        run_step: Makes one whole training step in a format and waits for it.
        repeats: Timed steps of each, after one untimed; the fastest counts.
    """
    if wanted != "auto":
        return wanted
    choices: tuple[MemoryFormat, ...] = ("contiguous", "channels_last")
    return _fastest("memory_format", choices, run_step, repeats)


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


def _fastest(
    what: str, choices: tuple[_Choice, ...], run_step: Callable[[_Choice], object], repeats: int
) -> _Choice:
    seconds: dict[_Choice, float] = {}
    for choice in choices:
        run_step(choice)
        seconds[choice] = min(_time(run_step, choice) for _ in range(repeats))
    chosen = min(seconds, key=seconds.__getitem__)
    took = " and ".join(f"{value:.3f} s in {choice}" for choice, value in seconds.items())
    _log.info("%s auto: a step takes %s; %s it is", what, took, chosen)
    return chosen


def _time(run_step: Callable[[_Choice], object], choice: _Choice) -> float:
    start = time.perf_counter()
    run_step(choice)
    return time.perf_counter() - start
