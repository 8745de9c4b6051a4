"""A run's log: one JSON record a line, appended, so that a curve can be drawn from it later.

Losses are summed on the device and read only when a record is written. Knows no encoder.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amdim_training.errors import DivergedError

LOG_FILE = "log.jsonl"

Report = Callable[[Mapping[str, Any]], None]


class Journal:
    """Collects losses between records and writes records to `log.jsonl`.

    Args:
        folder: The run's folder; None writes nothing, as in all but the first process.
        report: Called with each record.
    """

    def __init__(self, folder: Path | None, report: Report | None = None) -> None:
        self._file = folder / LOG_FILE if folder else None
        self._report = report
        self._losses: list[Tensor] = []
        self._started = time.monotonic()

    def note(self, record: Mapping[str, Any]) -> None:
        """Writes one record."""
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time(), 1), **record}) + "\n")
        if self._report is not None:
            self._report(record)

    def count(self, losses: Mapping[str, Tensor]) -> None:
        """Remembers an update's scalar losses without waiting for the device."""
        self._names = tuple(losses)
        self._losses.append(torch.stack([loss.detach() for loss in losses.values()]))

    def summarize(self, record: Mapping[str, Any], *, pairs_per_update: int) -> None:
        """Writes a record with the mean losses and the speed since the last one.

        Raises:
            DivergedError: A mean loss is no longer finite.
        """
        seconds = time.monotonic() - self._started
        means = torch.stack(self._losses).mean(dim=0).tolist()
        pairs = len(self._losses) * pairs_per_update
        losses = {name: round(mean, 5) for name, mean in zip(self._names, means, strict=True)}
        self.note({**record, **losses, "pairs_per_s": round(pairs / seconds, 1)})
        if not all(map(math.isfinite, means)):
            raise DivergedError(f"the loss is no longer finite at update {record['step']}")
        self._losses.clear()
        self._started = time.monotonic()
