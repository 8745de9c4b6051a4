"""The gateway against what its parts can do: decode alone, engine alone, then both over HTTP.

    python benchmarks/gateway.py [--repository DIR] [--photos ZIP_OR_DIR] [--seconds 10]

One run on one machine prints one table and writes benchmarks/results/gateway.json. The bound is
what decoding and the engine could do together on these cores if nothing else cost anything. The
gateway's own CPU is measured on `hollow.py`: the same server, nothing decoded, nothing encoded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from load import LoadResult, run_load
from PIL import Image
from rich.console import Console
from rich.table import Table

from amdim_clients.images import decode_image
from amdim_serving.engines import Engine
from amdim_serving.opening import open_model
from amdim_serving.settings import find_repository

HERE = Path(__file__).resolve().parent
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Rate:
    """Images a second on every core, and CPU seconds an image."""

    images_per_s: float
    cpu_s: float


def main() -> None:
    """Runs the whole benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=None)
    parser.add_argument("--model", default="amdim")
    parser.add_argument(
        "--photos", type=Path, default=HERE.parents[1] / "shared" / "data" / "photos.zip"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
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
    repository = find_repository(args.repository)
    bodies = [photo.read_bytes() for photo in photos]
    opened = open_model(repository, args.model)
    engine = opened.engine
    decode = decode_alone(engine, bodies, args.seconds)
    alone = engine_alone(engine, args.seconds)
    one_ms = decode_and_engine_ms(engine, bodies, args.seconds)
    described = {**asdict(engine.info), "model": engine.spec.name, "version": engine.spec.version}
    engine.close()
    bound = 1 / (1 / decode.images_per_s + 1 / alone.images_per_s)
    runs = []
    hollow_command = [sys.executable, str(HERE / "hollow.py"), str(repository), args.model]
    with Server(hollow_command) as server:
        run_load(server.port, photos, clients=32, seconds=1)  # warm up
        cpu = server.cpu_s()
        load = run_load(server.port, photos, clients=32, seconds=args.seconds)
        own_cpu_ms = 1e3 * (server.cpu_s() - cpu) / load.requests
    serve_command = [sys.executable, "-m", "amdim_clients.cli", "serve", "--port", "0"]
    serve_command += ["--repository", str(repository), "--model", args.model, "--drain-delay", "0"]
    with Server(serve_command) as server:
        run_load(server.port, photos, clients=8, seconds=2)  # warm up
        for clients in args.clients:
            cpu = server.cpu_s()
            load = run_load(server.port, photos, clients=clients, seconds=args.seconds)
            cpu = server.cpu_s() - cpu
            runs.append(describe_run(clients, load, cpu, bound))
    overhead = next((r["p50_ms"] - one_ms for r in runs if r["clients"] == 1), None)
    return {
        "machine": {"cpu": cpu_name(), "cores": CORES, "load_before": os.getloadavg()[0]},
        "photos": {"count": len(photos), "mean_bytes": round(np.mean([len(b) for b in bodies]))},
        "engine": described,
        "decode_alone": asdict(decode),
        "engine_alone_batch_16": asdict(alone),
        "bound_images_per_s": bound,
        "decode_and_engine_one_image_p50_ms": one_ms,
        "overhead_one_client_p50_ms": overhead,
        "gateway_own_cpu_ms": own_cpu_ms,
        "runs": runs,
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


def rate_of(work: Callable[[], int], seconds: float) -> Rate:
    """Calls `work`, which returns how many images it did, for so long."""
    work()
    images = 0
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        images += work()
    return Rate(images / (time.perf_counter() - wall), (time.process_time() - cpu) / max(1, images))


def decode_alone(engine: Engine, bodies: Sequence[bytes], seconds: float) -> Rate:
    """Decodes on as many threads as cores."""
    preprocess = engine.spec.preprocess
    with ThreadPoolExecutor(CORES) as pool:

        def work() -> int:
            return len(list(pool.map(lambda body: decode_image(body, preprocess), bodies)))

        return rate_of(work, seconds)


def engine_alone(engine: Engine, seconds: float) -> Rate:
    """Encodes full batches, one at a time, on every core."""
    spec = engine.spec
    batch = min(16, spec.max_batch_size)
    shape = (batch, spec.image_size, spec.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def work() -> int:
        engine.encode(images, (spec.default_output,))
        return batch

    return rate_of(work, seconds)


def decode_and_engine_ms(engine: Engine, bodies: Sequence[bytes], seconds: float) -> float:
    """Median milliseconds of one photo through both, one after the other, nothing around them."""
    spec = engine.spec
    spent: list[float] = []
    end = time.perf_counter() + seconds
    for body in itertools.cycle(bodies):
        started = time.perf_counter()
        pixels = decode_image(body, spec.preprocess).pixels
        engine.encode(pixels[None], (spec.default_output,))
        spent.append(1e3 * (time.perf_counter() - started))
        if time.perf_counter() > end:
            return float(np.median(spent))
    raise ValueError("there are no photos")


class Server:
    """A server process that says on stderr which port it listens on."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r"ready on http://[^:]+:(\d+)", line):
                self.port = int(found[1])
                return
        raise RuntimeError("the gateway did not start")

    def cpu_s(self) -> float:
        """CPU seconds of the server so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)
        if self._process.stderr is not None:
            self._process.stderr.close()


def collect_photos(source: Path, folder: Path) -> list[Path]:
    """Returns JPEG files: of a folder, of a zip, or drawn when there is neither."""
    if source.is_dir():
        return sorted(p for p in source.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if source.is_file():
        with zipfile.ZipFile(source) as archive:
            names = [n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg"))]
            return [Path(archive.extract(name, folder)) for name in sorted(names)]
    rng = np.random.default_rng(0)
    for number in range(32):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    return sorted(folder.glob("*.jpg"))


def cpu_name() -> str:
    """Returns the processor's name."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def show(report: dict[str, Any]) -> None:
    """Prints the run as a table."""
    console = Console(width=120)
    console.print({key: value for key, value in report.items() if key != "runs"})
    columns = {
        "clients": "clients",
        "img/s": "images_per_s",
        "img/s, generator off": "corrected_images_per_s",
        "of bound": "ratio_to_bound",
        "p50 ms": "p50_ms",
        "p99 ms": "p99_ms",
        "server CPU ms/img": "server_cpu_ms",
        "errors": "errors",
    }
    table = Table(*columns, title="gateway, raw JPEG bodies")
    for run in report["runs"]:
        values = [run[name] for name in columns.values()]
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in values))
    console.print(table)


if __name__ == "__main__":
    main()
