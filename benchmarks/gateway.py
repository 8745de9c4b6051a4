"""The gateway against what its parts can do: decode alone, engine alone, then both over HTTP.

    python benchmarks/gateway.py [--repository DIR] [--photos ZIP_OR_DIR] [--seconds 5]

One run on one machine prints one table and writes benchmarks/results/gateway.json. The bound is
what decoding and the engine could do together on these cores if nothing else cost anything; both
are measured before and after the gateway, since a shared machine's speed drifts. The gateway's own
CPU is measured on `hollow.py`: the same server, nothing decoded, nothing encoded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from bound import CORES, Rate, bound_of, decode_alone, decode_and_engine_ms, engine_alone
from load import (
    PHOTOS,
    Arrivals,
    LoadResult,
    Server,
    collect_photos,
    machine_cpu_s,
    run_arrivals,
    run_load,
)
from rich.console import Console
from rich.table import Table

from amdim_serving.choosing import list_candidates, open_engine
from amdim_serving.opening import OpenModel
from amdim_serving.settings import Settings, load_settings

HERE = Path(__file__).resolve().parent
# Of the overload run: a queue that fills within it.
_SMALL_QUEUE = ("--max-images", "64", "--queue-images", "256")


def main() -> None:
    """Runs the whole benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=None)
    parser.add_argument("--model", default="amdim")
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument(
        "--only", default="", help="engine/precision, such as openvino/int8; else all there are"
    )
    parser.add_argument("--serve", default="", help="further flags of amdim serve")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gateway.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = collect_photos(args.photos, Path(folder))
        report = measure(args, photos)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)


def measure(args: argparse.Namespace, photos: Sequence[Path]) -> dict[str, Any]:
    """Returns every number of the run."""
    settings = load_settings(model_repository=args.repository, model=args.model)
    bodies = [photo.read_bytes() for photo in photos]
    engines = []
    for candidate in list_candidates(settings):
        name = f"{candidate.engine}/{candidate.precision}"
        if args.only in ("", name):
            named = settings.model_copy(
                update={"engine": candidate.engine, "precision": candidate.precision}
            )
            engines.append(measure_engine(args, named, photos, bodies))
    fastest = max(engines, key=lambda one: one["peak_images_per_s"])
    return {
        "machine": {"cpu": cpu_name(), "cores": CORES, "load_before": os.getloadavg()[0]},
        "photos": {"count": len(photos), "mean_bytes": round(np.mean([len(b) for b in bodies]))},
        "gateway_own_cpu_ms": own_cpu_ms(settings, photos, args.seconds),
        "engines": engines,
        **arrive(args, settings, photos, fastest),
    }


def measure_engine(
    args: argparse.Namespace, settings: Settings, photos: Sequence[Path], bodies: Sequence[bytes]
) -> dict[str, Any]:
    """Measures one engine at one precision: its parts, the gateway, its parts again."""
    parts = [measure_parts(settings, bodies, args.seconds / 2)]
    loads: list[tuple[LoadResult, float, float]] = []
    with Server(command(settings, *args.serve.split())) as server:
        run_load(server.port, photos, clients=8, seconds=2)  # warm up
        for clients in args.clients:
            cpu_s, machine_s = server.cpu_s(), machine_cpu_s()
            load = run_load(server.port, photos, clients=clients, seconds=args.seconds)
            loads.append((load, server.cpu_s() - cpu_s, machine_cpu_s() - machine_s))
    parts.append(measure_parts(settings, bodies, args.seconds / 2))
    mean = {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
    runs = [
        describe_run(clients, load, cpu_s, mean["bound_images_per_s"])
        | {"others_cpu_share": (machine_s - cpu_s - load.cpu_s) / (load.seconds * CORES)}
        for clients, (load, cpu_s, machine_s) in zip(args.clients, loads, strict=True)
    ]
    alone = next((run["p50_ms"] for run in runs if run["clients"] == 1), None)
    one_ms = mean["decode_and_engine_one_image_p50_ms"]
    return {
        "engine": settings.engine,
        "precision": settings.precision,
        "start_to_ready_s": server.ready_s,
        **mean,
        "overhead_one_client_p50_ms": None if alone is None else alone - one_ms,
        "peak_images_per_s": max(run["images_per_s"] for run in runs),
        "runs": runs,
    }


def measure_parts(settings: Settings, bodies: Sequence[bytes], seconds: float) -> dict[str, float]:
    """Measures decoding and the engine alone; of the two ways the engine is called the better."""
    opened: OpenModel = open_engine(settings)
    engines = [opened.engine] if opened.beside is None else [opened.engine, opened.beside]
    decode = decode_alone(opened.engine.spec.preprocess, bodies, seconds)
    rates = [engine_alone(engine, seconds) for engine in engines]
    one_ms = decode_and_engine_ms(opened.engine, bodies, seconds)
    for engine in engines:
        engine.close()
    best: Rate = max(rates, key=lambda rate: rate.images_per_s)
    return {
        "decode_images_per_s": decode.images_per_s,
        "decode_cpu_ms": 1e3 * decode.cpu_s,
        "engine_images_per_s": best.images_per_s,
        "engine_cpu_ms": 1e3 * best.cpu_s,
        "bound_images_per_s": bound_of(decode, best),
        "decode_and_engine_one_image_p50_ms": one_ms,
    }


def own_cpu_ms(settings: Settings, photos: Sequence[Path], seconds: float) -> float:
    """CPU milliseconds an image of a gateway in which decoding and encoding cost nothing."""
    hollow = [sys.executable, str(HERE / "hollow.py"), str(settings.repository()), settings.model]
    with Server(hollow) as server:
        run_load(server.port, photos, clients=32, seconds=1)  # warm up
        cpu = server.cpu_s()
        load = run_load(server.port, photos, clients=32, seconds=seconds)
        return 1e3 * (server.cpu_s() - cpu) / load.requests


def arrive(
    args: argparse.Namespace, settings: Settings, photos: Sequence[Path], engine: dict[str, Any]
) -> dict[str, Any]:
    """Runs the fastest engine under arrivals that do not wait: at half its peak, then at twice."""
    named = settings.model_copy(
        update={"engine": engine["engine"], "precision": engine["precision"]}
    )
    if shutil.which("cc") is None:
        return {"arrivals": "not measured: there is no C compiler (Debian: apt install gcc)"}
    with Server(command(named, *args.serve.split(), *_SMALL_QUEUE)) as server:
        run_load(server.port, photos, clients=8, seconds=2)  # warm up
        closed = run_load(server.port, photos, clients=32, seconds=args.seconds)
        peak = (closed.requests - closed.errors) / closed.seconds
        half = run_arrivals(server.port, photos, rate=peak / 2, seconds=args.seconds)
        twice = run_arrivals(server.port, photos, rate=peak * 2, seconds=args.seconds)
    spare = 1 - closed.cpu_s / (closed.seconds * CORES)
    return {
        "arrivals_engine": f"{named.engine} {named.precision}",
        "arrivals_peak_images_per_s": peak,
        "open_loop_at_half": describe_arrivals(half, peak / spare),
        "overload_at_twice": describe_arrivals(twice, peak / spare),
    }


def describe_arrivals(seen: Arrivals, peak: float) -> dict[str, Any]:
    """Returns one open-loop run; `peak` has its generator's CPU taken off, and so has this."""
    spare = 1 - seen.cpu_s / (seen.seconds * CORES)
    goodput = seen.good / seen.seconds
    return {
        **asdict(seen),
        "goodput_images_per_s": goodput,
        "goodput_of_peak": goodput / spare / peak,
        "generator_cpu_share": 1 - spare,
    }


def describe_run(clients: int, load: LoadResult, cpu_s: float, bound: float) -> dict[str, Any]:
    """Returns one row; `corrected` is the rate on the cores that the generator left."""
    rate = (load.requests - load.errors) / load.seconds
    taken = load.cpu_s / (load.seconds * CORES)
    return {
        **asdict(load),
        "clients": clients,
        "images_per_s": rate,
        "corrected_images_per_s": rate / (1 - taken),
        "ratio_to_bound": rate / (1 - taken) / bound,
        "generator_cpu_share": taken,
        "server_cpu_ms": 1e3 * cpu_s / max(1, load.requests),
    }


def command(settings: Settings, *flags: str) -> list[str]:
    """Returns the line that serves an engine outright, on a free port."""
    serve = [sys.executable, "-m", "amdim_clients.cli", "serve", "--port", "0"]
    serve += ["--repository", str(settings.repository()), "--model", settings.model]
    serve += ["--engine", settings.engine, "--precision", settings.precision]
    return [*serve, "--drain-delay", "0", *flags]


def cpu_name() -> str:
    """Returns the processor's name."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def show(report: dict[str, Any]) -> None:
    """Prints the run as a table."""
    console = Console(width=130)
    columns = {
        "clients": "clients",
        "img/s": "images_per_s",
        "generator off": "corrected_images_per_s",
        "of bound": "ratio_to_bound",
        "p50 ms": "p50_ms",
        "p99 ms": "p99_ms",
        "server CPU ms/img": "server_cpu_ms",
        "others' CPU": "others_cpu_share",
        "errors": "errors",
    }
    table = Table("engine", *columns, title="gateway, raw JPEG bodies")
    for engine in report["engines"]:
        name = f"{engine['engine']} {engine['precision']}"
        console.print(name, {k: v for k, v in engine.items() if k != "runs"})
        for run in engine["runs"]:
            values = [run[column] for column in columns.values()]
            table.add_row(name, *(f"{v:.2f}" if isinstance(v, float) else str(v) for v in values))
    console.print({key: value for key, value in report.items() if key != "engines"})
    console.print(table)


if __name__ == "__main__":
    main()
