"""The export commands. Each imports what it needs when it runs, so that listing them is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_Repository = Annotated[Path, typer.Argument(help="The model repository.")]


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder, or a run's folder.")],
    to: Annotated[Path, typer.Option(help="The model repository to publish into.")] = Path(
        "model_repository"
    ),
    name: Annotated[str, typer.Option(help="The model's name.")] = "amdim",
    fit_on: Annotated[
        list[Path] | None,
        typer.Option(help="Pictures to fit the search vector on: a .parquet pack or a folder."),
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit it again also on pictures it was fitted on before.")
    ] = False,
    parity_on: Annotated[
        list[Path] | None,
        typer.Option(help="Pictures to measure on (a pack's val or test rows)."),
    ] = None,
    target: Annotated[
        str, typer.Option(help="onnx, or tensorrt: NAME_tensorrt, an engine for this GPU.")
    ] = "onnx",
    weights: Annotated[
        str, typer.Option(help="How an ONNX file stores its weights: fp32 or fp16.")
    ] = "fp32",
    precision: Annotated[
        str, typer.Option(help="What a TensorRT engine computes in: fp16, bf16 or fp32.")
    ] = "fp16",
    max_batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch at most.")] = 16,
    embedding_dim: Annotated[int, typer.Option(min=1, help="Size of the search vector.")] = 256,
    version: Annotated[
        int | None, typer.Option(min=1, help="Version number; the next free one if not given.")
    ] = None,
    instances: Annotated[int, typer.Option(min=1, help="Copies that run at a time.")] = 1,
    max_queue_delay_us: Annotated[
        int, typer.Option(min=0, help="Microseconds a batch may wait to fill; 0 never waits.")
    ] = 0,
    image: Annotated[
        bool, typer.Option("--image", help="Also publish NAME_image, which takes picture files.")
    ] = False,
    windows: Annotated[
        bool,
        typer.Option("--windows", help="Also publish NAME_windows: every window of any picture."),
    ] = False,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Triton is to run the ONNX models on a GPU.")
    ] = False,
    accelerate: Annotated[
        bool,
        typer.Option("--accelerate", help="On a GPU, ONNX Runtime is to call TensorRT."),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Publish nothing, and fail, if a precision measured misses a target."
        ),
    ] = False,
) -> None:
    """Export an encoder: ONNX, Triton configuration, certificate; published when it is the same."""
    from rich.console import Console

    _require_one_of(("onnx", "tensorrt"), target, "--target")
    _require_one_of(("fp32", "fp16"), weights, "--weights")
    _require_one_of(("fp16", "bf16", "fp32"), precision, "--precision")
    if target == "tensorrt" and (windows or accelerate):
        raise typer.BadParameter(
            "--windows and --accelerate are of --target onnx", param_hint="--target"
        )

    from amdim_export.pipeline import ExportOptions, export_encoder
    from amdim_export.report import certificate_report
    from amdim_training.allocator import keep_freed_memory

    if target == "tensorrt":
        from amdim_export.tensorrt_export import export_tensorrt as export_target
    else:
        export_target = export_encoder
    console = Console()
    options = ExportOptions(
        name=name,
        fit_on=tuple(fit_on or ()),
        parity_on=tuple(parity_on or ()),
        weights=weights,
        max_batch_size=max_batch_size,
        embedding_dim=embedding_dim,
        version=version,
        instances=instances,
        max_queue_delay_us=max_queue_delay_us,
        image=image,
        windows=windows,
        refit=refit,
        gpu=gpu,
        accelerate=accelerate,
        precision=precision if target == "tensorrt" else "fp32",
        strict=strict,
    )
    keep_freed_memory()
    with console.status("loading the checkpoint") as status:
        published = export_target(checkpoint, to, options, say=status.update, note=console.print)
    for one in published:
        title = f"Certificate of {one.folder.parent.name} {one.folder.name}"
        for part in certificate_report(title, one.certificate):
            console.print(part, soft_wrap=isinstance(part, str), highlight=False)
        size = one.artifact.stat().st_size / 1e6
        console.print(f"published {one.folder} ({size:.1f} MB)", soft_wrap=True)


def models(repository: _Repository = Path("model_repository")) -> None:
    """List a repository's versions with their digests and certificates."""
    from rich.console import Console

    from amdim_export.listing import list_artifacts
    from amdim_export.report import versions_table

    Console().print(versions_table(list_artifacts(repository)))


def retire(
    repository: _Repository,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    version: Annotated[int, typer.Argument(help="The version to take out of service.")],
) -> None:
    """Take a version out of service; retiring the newest rolls back to the one before."""
    from amdim_export.repository import list_versions, retire_version

    kept = retire_version(repository, model, version)
    newest = list_versions(repository / model)[-1]
    typer.echo(f"retired {model} {version} (kept in {kept}); version {newest} is served")


def rollback(
    repository: _Repository,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    to: Annotated[
        int | None, typer.Option(help="The version to serve again; else the one before.")
    ] = None,
) -> None:
    """Serve an earlier version again; every newer one is retired."""
    from amdim_export.repository import list_versions, roll_back

    kept = roll_back(repository, model, to)
    newest = list_versions(repository / model)[-1]
    retired = ", ".join(path.name for path in kept)
    typer.echo(f"{model} {newest} is served again; retired and kept: {retired}")


def check(
    repository: _Repository = Path("model_repository"),
    strict: Annotated[
        bool, typer.Option("--strict", help="What cannot be measured here fails too.")
    ] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Also compare with this checkpoint (needs torch).")
    ] = None,
) -> None:
    """Measure every artifact again on this machine; exit code 1 names what fails."""
    from rich.console import Console

    from amdim_export.check import check_repository
    from amdim_export.report import findings_table

    findings = check_repository(repository)
    if checkpoint is not None:
        from amdim_export.checkpoint_check import check_against_checkpoint

        findings += check_against_checkpoint(repository, checkpoint)
    Console().print(findings_table(findings))
    failed = [
        finding for finding in findings if not finding.holds or (strict and finding.unmeasured)
    ]
    for finding in failed:
        why = finding.problem or f"not measured: {finding.unmeasured}"
        typer.echo(f"amdim: {finding.model} {finding.version}: {finding.what}: {why}", err=True)
    if failed:
        raise typer.Exit(1)


def _require_one_of(allowed: tuple[str, ...], given: str, option: str) -> None:
    if given not in allowed:
        choices = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
        raise typer.BadParameter(choices, param_hint=option)
