"""What the commands show while they work and after: a progress bar, and what failed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from amdim_clients.inputs import ImageFailure

SOME_FAILED = 3  # exit code: the work is done, but some pictures were left out
_LISTED = 10


@contextmanager
def image_progress(description: str, total: int | None) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error with images per second; called with images done and failed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    # Pillow reports broken pictures to its logger too; they are listed at the end.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} images/s"),
        Remaining(),
        TextColumn("{task.fields[note]}"),
    )
    started = time.monotonic()
    done = bad = 0
    console = Console(stderr=True)
    # In a log file a bar is only noise.
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(description, total=total, rate=0.0, note="")

        def advance(count: int, failed: int) -> None:
            nonlocal done, bad
            done, bad = done + count, bad + failed
            rate = done / max(1e-9, time.monotonic() - started)
            bar.update(task, completed=done, rate=rate, note=f"{bad} failed" if bad else "")

        yield advance


def report_failures(failed: Sequence[tuple[str, ImageFailure]], file: Path) -> None:
    """List the first failures on standard error and write all of them to `file`, one JSON a line.

    With no failures, a file that an earlier run left is removed.
    """
    from amdim_clients.atomic import written_aside

    if not failed:
        file.unlink(missing_ok=True)
        return
    with written_aside(file) as aside, aside.open("w", encoding="utf-8") as lines:
        for key, failure in failed:
            entry = {"path": key, "code": failure.code, "message": failure.message}
            lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
    for key, failure in failed[:_LISTED]:
        typer.echo(f"skipped {key}: {failure.message} ({failure.code})", err=True)
    if len(failed) > _LISTED:
        typer.echo(f"and {len(failed) - _LISTED} more", err=True)
    typer.echo(f"{len(failed)} pictures skipped, all listed in {file}", err=True)


def beside(target: Path) -> Path:
    """Where failures go unless told: beside what the command writes."""
    return target.with_name(target.name + ".failures.jsonl")
