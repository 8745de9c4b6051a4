"""The `amdim serve` command; imports nothing heavy until it runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind. [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 takes a free one. [8000]")] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="KServe v2 gRPC port; 0 takes a free one. [port + 1]")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository. [./model_repository]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to serve. [amdim]")] = None,
    model_version: Annotated[str | None, typer.Option(help="Its version. [the highest]")] = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, onnxruntime, openvino or triton. [auto]")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16 or int8; auto: certified ones. [auto]")
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="ONNX Runtime provider; never replaced silently.")
    ] = None,
    triton_url: Annotated[
        str | None, typer.Option(help="Triton's gRPC address, for --engine triton. [:8101]")
    ] = None,
    triton_in_flight: Annotated[
        int | None, typer.Option(help="Batches on their way to Triton; 0: as its instances need.")
    ] = None,
    triton_seconds: Annotated[
        float | None, typer.Option(help="Longest wait for a batch of Triton's.")
    ] = None,
    triton_connect_seconds: Annotated[
        float | None, typer.Option(help="Longest wait for a Triton that is starting.")
    ] = None,
    triton_tls: Annotated[
        bool | None, typer.Option("--triton-tls", help="Reach Triton over TLS.")
    ] = None,
    triton_ca_file: Annotated[
        Path | None, typer.Option(help="PEM that vouches for Triton; else the system's.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that share cores and ports; 0: one a core. [1]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Engine threads; 0: every core.")] = None,
    decode_threads: Annotated[
        int | None, typer.Option(help="Threads that decode pictures; 0: every core.")
    ] = None,
    drain_delay: Annotated[
        float | None, typer.Option(help="Seconds /readyz says 503 before listeners close.")
    ] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="File of API keys, one a line; none: no key needed.")
    ] = None,
    admin_keys_file: Annotated[
        Path | None, typer.Option(help="File of keys that may load a new model version.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="A port for /metrics alone, without a key.")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json. [text]")] = None,
    access_log: Annotated[
        bool | None, typer.Option("--access-log", help="Log a line per request.")
    ] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Largest request body.")] = None,
    max_images: Annotated[int | None, typer.Option(help="Most images in a request.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Most pixels in an image.")] = None,
    max_windows: Annotated[int | None, typer.Option(help="Most windows in an image.")] = None,
    min_side: Annotated[int | None, typer.Option(help="Least side of an image, pixels.")] = None,
    decode_seconds: Annotated[float | None, typer.Option(help="Longest decode.")] = None,
    queue_images: Annotated[int | None, typer.Option(help="Images admitted at once.")] = None,
    deadline_seconds: Annotated[float | None, typer.Option(help="Longest request.")] = None,
) -> None:
    """Serve an encoder over HTTP. Every option is also an AMDIM_ environment variable."""
    started = time.monotonic()
    # Heavy imports: only the command that serves pays for them.
    from amdim_serving.logs import log_to_stderr
    from amdim_serving.settings import load_settings

    settings = load_settings(
        host=host,
        port=port,
        grpc_port=grpc_port,
        model_repository=repository,
        model=model,
        model_version=model_version,
        engine=engine,
        precision=precision,
        provider=provider,
        triton_url=triton_url,
        triton_in_flight=triton_in_flight,
        triton_seconds=triton_seconds,
        triton_connect_seconds=triton_connect_seconds,
        triton_tls=triton_tls,
        triton_ca_file=triton_ca_file,
        workers=workers,
        threads=threads,
        decode_threads=decode_threads,
        drain_delay=drain_delay,
        api_keys_file=api_keys_file,
        admin_keys_file=admin_keys_file,
        metrics_port=metrics_port,
        log_format=log_format,
        access_log=access_log,
        max_body_bytes=max_body_bytes,
        max_images=max_images,
        max_pixels=max_pixels,
        max_windows=max_windows,
        min_side=min_side,
        decode_seconds=decode_seconds,
        queue_images=queue_images,
        deadline_seconds=deadline_seconds,
    )
    log_to_stderr(settings.log_format)
    if settings.workers > 1:
        from amdim_serving.workers import supervise

        supervise(settings, started=started)
        return
    from amdim_serving.server import serve as run

    run(settings, started=started)
