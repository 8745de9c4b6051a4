"""The command that quantizes an encoder; it imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from amdim_export.quantize import Target


def quantize(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder, or a run's folder.")],
    calibrate_on: Annotated[
        list[Path],
        typer.Option(help="Pictures to learn from: a .parquet pack (its train rows) or a folder."),
    ],
    parity_on: Annotated[
        list[Path],
        typer.Option(help="Other pictures to measure on: a pack (its val or test rows), a folder."),
    ],
    to: Annotated[Path, typer.Option(help="The model repository to publish into.")] = Path(
        "model_repository"
    ),
    name: Annotated[
        str, typer.Option(help="The encoder's model; NAME_int8 is published.")
    ] = "amdim",
    target: Annotated[
        str,
        typer.Option(help="openvino (CPUs), or tensorrt: NAME_int8_gpu, signed int8 throughout."),
    ] = "openvino",
    steps: Annotated[
        int, typer.Option(min=0, help="Updates of the fine-tuning; 0 only calibrates.")
    ] = 400,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures of an update.")] = 16,
    learning_rate: Annotated[
        float, typer.Option(help="Of weights at its peak, as a share of their size.")
    ] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the pictures' order.")] = 0,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(help="A part not to quantize: head5, head7 or a layer's number."),
    ] = None,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch at most.")] = 16,
    version: Annotated[
        int | None, typer.Option(min=1, help="Version number; the next free one if not given.")
    ] = None,
    instances: Annotated[int, typer.Option(min=1, help="Copies that run at a time.")] = 1,
    max_queue_delay_us: Annotated[
        int, typer.Option(min=0, help="Microseconds a batch may wait to fill; 0 never waits.")
    ] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Publish nothing, and fail, if a target is missed.")
    ] = False,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Also write what was measured to this file.")
    ] = None,
) -> None:
    """Quantize an encoder to int8: fine-tuned on pictures, measured on others, published."""
    import time

    from rich.console import Console

    from amdim_export.finetune import FineTuning
    from amdim_export.quantize import QuantizeOptions, quantize_encoder
    from amdim_export.report import certificate_report
    from amdim_training.allocator import keep_freed_memory

    if target != "openvino" and target != "tensorrt":
        raise typer.BadParameter("openvino or tensorrt", param_hint="--target")
    options = QuantizeOptions(
        name=name,
        calibrate_on=tuple(calibrate_on),
        parity_on=tuple(parity_on),
        target=cast("Target", target),
        tuning=FineTuning(steps, batch_size, learning_rate, seed),
        keep_float=frozenset(keep_float or ()),
        max_batch_size=max_batch_size,
        version=version,
        instances=instances,
        max_queue_delay_us=max_queue_delay_us,
        strict=strict,
    )
    console = Console()
    keep_freed_memory()
    started = time.monotonic()
    with console.status("loading the checkpoint") as status:

        def told(step: int, count: int, loss: float) -> None:
            status.update(f"fine-tuning: {step} of {count}, distance {loss:.4f}")

        published = quantize_encoder(checkpoint, to, options, say=status.update, progress=told)
    title = f"Certificate of {published.folder.parent.name} {published.folder.name}"
    for part in certificate_report(title, published.certificate):
        console.print(part, soft_wrap=isinstance(part, str), highlight=False)
    size = published.artifact.stat().st_size / 1e6
    minutes = (time.monotonic() - started) / 60.0
    console.print(f"published {published.folder} ({size:.1f} MB) in {minutes:.1f} minutes")
    if json_out is not None:
        import json

        found = {key: one.to_json() for key, one in published.certificate.precisions.items()}
        json_out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
