"""Shows a training run: a bar on a terminal, a line per record elsewhere.

Knows nothing of training but its log records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LOSSES = ("total", "global_to_5", "global_to_7", "five_to_5", "penalty")


@contextmanager
def training_progress() -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yields a function that shows one log record."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda record: console.print(describe(record), soft_wrap=True, highlight=False)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=None)

        def show(record: Mapping[str, Any]) -> None:
            if record["event"] == "step":
                progress.update(
                    bar,
                    completed=record["step"],
                    total=record["of"],
                    description=f"loss {record['total']:.3f}  {record['pairs_per_s']:.0f} pairs/s",
                )
            else:
                console.print(describe(record), highlight=False)

        yield show


def describe(record: Mapping[str, Any]) -> str:
    """Returns a log record as one line."""
    if record["event"] == "step":
        losses = "  ".join(f"{name} {record[name]:.3f}" for name in _LOSSES)
        rate = f"lr {record['lr']:.2e}  {record['pairs_per_s']:.0f} pairs/s"
        return f"update {record['step']}/{record['of']}  {losses}  {rate}"
    if record["event"] == "knn":
        return (
            f"update {record['step']}  kNN {100 * record['knn_global']:.1f} % global, "
            f"{100 * record['knn_embedding']:.1f} % embedding"
        )
    return (
        f"from update {record['step']} of {record['steps']}: {record['images']} images, "
        f"{record['precision']}, {record['memory_format']}, "
        f"{'compiled' if record['compiled'] else 'not compiled'}, "
        f"{record['device']}, {record['threads']} threads"
    )
