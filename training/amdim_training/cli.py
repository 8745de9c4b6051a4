"""The commands that make checkpoints: `amdim train`, `amdim convert`. Torch loads once they run."""

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


def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint of any kind that can be read.")],
    target: Annotated[Path, typer.Argument(help="A folder, or a file ending in .pth.")],
    half: Annotated[bool, typer.Option("--half", help="Store a folder's weights as fp16.")] = False,
    averaged: Annotated[bool, typer.Option(help="Take a run's averaged weights.")] = False,
) -> None:
    """Convert a checkpoint: the original program's, its port's or this one's, to either layout."""
    import torch

    from amdim_training.checkpoint import load_checkpoint, save_checkpoint
    from amdim_training.errors import CheckpointError
    from amdim_training.reference import save_reference

    checkpoint = load_checkpoint(source, averaged=averaged)
    if target.exists():
        raise CheckpointError(f"{target} exists already")
    if target.suffix == ".pth":
        save_reference(target, checkpoint.encoder)
    else:
        save_checkpoint(
            target,
            checkpoint.encoder,
            checkpoint.normalization,
            meta=checkpoint.meta,
            dtype=torch.float16 if half else torch.float32,
        )
    shape = checkpoint.encoder.config
    print(
        f"{target}: {shape.image_size} px, width {shape.width}, D {shape.embed_dim}, "
        f"depth {shape.depth}"
    )


def blend(
    first: Annotated[Path, typer.Argument(help="The encoder that was trained on from.")],
    second: Annotated[Path, typer.Argument(help="The one that this led to; it may be deeper.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the second one's weights.")],
    data: Annotated[
        list[str], typer.Option(help="Training images: batch norms are recomputed on them.")
    ],
    images: Annotated[int, typer.Option(min=64, help="How many of them.")] = 2_048,
    half: Annotated[bool, typer.Option("--half", help="Store the weights as fp16.")] = False,
) -> None:
    """Write an encoder between two: what one was, and what training on made of it."""
    import torch

    from amdim_clients.images import Preprocess
    from amdim_training.blend import blend as blended
    from amdim_training.checkpoint import load_checkpoint, save_checkpoint
    from amdim_training.data import load_images

    one, other = load_checkpoint(first), load_checkpoint(second)
    size = other.encoder.config.image_size
    found = load_images(data, Preprocess(size, size)).subset(images)
    encoder = blended(one, other, share, torch.from_numpy(found.pixels))
    folder = save_checkpoint(
        target,
        encoder,
        other.normalization,
        meta={**other.meta, "blended_with": str(first), "blended_share": share},
        dtype=torch.float16 if half else torch.float32,
    )
    print(f"{folder}: {share:g} of {second}, {1 - share:g} of {first}")
