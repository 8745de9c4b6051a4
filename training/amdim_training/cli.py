"""The command that trains: `amdim train`. Imports torch only once it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="A TOML file, such as those of training/configs.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value, in TOML syntax.")
    ] = None,
) -> None:
    """Train an encoder from a configuration; run it again to go on where it stopped."""
    import logging

    from amdim_training.config import TrainConfig
    from amdim_training.progress import training_progress
    from amdim_training.train import train as run

    settings = TrainConfig.load(config, overrides or [])
    with training_progress() as report:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        folder = run(settings, report=report)
    print(f"checkpoint: {folder}")
