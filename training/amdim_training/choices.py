"""What a run leaves to measurement, settled at its start: precision, memory format, compilation.

A run that goes on keeps what it settled, as long as the machine is of the same kind: another
choice would round differently. Knows no data and no log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import torch

from amdim_training.config import MemoryFormat, Precision, RunConfig
from amdim_training.precision import choose_compiled, choose_memory_format, choose_precision
from amdim_training.run import Run


@dataclasses.dataclass(frozen=True, slots=True)
class Choices:
    """How a run's steps are made."""

    precision: Precision
    memory_format: MemoryFormat
    compiled: bool


def settle(run: Run) -> Choices:
    """Settles what the configuration leaves to `auto`, and remembers it in the run.

    Of several processes the first one's measurement counts for all. They take channels_last and
    do not compile unless told so: their gradients' buckets are laid out before.
    """
    wanted = _kept(run.config.run, run.settled)
    precision = choose_precision(wanted.precision, run.trial_step)
    if run.batch is not None:
        known = get_args(Precision)
        precision = known[run.batch.of_first(known.index(precision))]
        layout = wanted.memory_format
        choices = Choices(precision, "channels_last" if layout == "auto" else layout, False)
    else:
        layout = _choose_memory_format(run, wanted.memory_format, precision)
        choices = Choices(precision, layout, _choose_compiled(run, wanted, precision))
    run.settled = {"machine": _kind_of_machine(run.device), **dataclasses.asdict(choices)}
    return choices


def _kept(config: RunConfig, settled: Mapping[str, Any]) -> RunConfig:
    """Returns the configuration with what an earlier part of the run settled in place of `auto`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settled.get("machine") != _kind_of_machine(device):
        return config
    names = {"precision": "precision", "memory_format": "memory_format", "compile": "compiled"}
    kept = {
        key: settled[name]
        for key, name in names.items()
        if getattr(config, key) == "auto" and name in settled
    }
    return dataclasses.replace(config, **kept)


def _choose_memory_format(run: Run, wanted: MemoryFormat, precision: Precision) -> MemoryFormat:
    def step(layout: MemoryFormat) -> None:
        run.use_memory_format(layout)
        run.trial_step(precision)

    chosen = choose_memory_format(wanted, step)
    run.use_memory_format(chosen)
    return chosen


def _choose_compiled(run: Run, wanted: RunConfig, precision: Precision) -> bool:
    def step(compiled: bool) -> None:
        run.use_compiled(compiled)
        run.trial_step(precision)

    compiled = choose_compiled(wanted.compile, step)
    run.use_compiled(compiled)
    return compiled


def _kind_of_machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
