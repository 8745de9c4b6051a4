"""The command that draws a run's log: `amdim curve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def curve(
    runs: Annotated[
        list[Path],
        typer.Argument(help="A run's folder or its log.jsonl, then those that went on from it."),
    ],
    target: Annotated[Path, typer.Argument(help="The SVG file to write.")],
) -> None:
    """Draw a run's losses and accuracies as an SVG picture."""
    from amdim_training.curve import write_curve

    write_curve(runs, target)
    print(target)
