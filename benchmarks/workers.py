"""What worker processes bring: the same load on one and on several, in turns.

    python benchmarks/workers.py [--workers 1 2] [--clients 32] [--seconds 10] [--rounds 2]

For each number of workers `amdim serve --workers N` is started, warmed up and loaded with raw JPEG
bodies over HTTP. Prints a table and writes benchmarks/results/workers.json: images a second, p99,
CPU an image, and the memory of all the server's processes while they are loaded (proportional set
size: a page that several share counts once in all). The rounds alternate, since a shared machine's
speed drifts; a row is the median of its rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bound import CORES
from gateway import command, cpu_name
from load import PHOTOS, Server, collect_photos, machine_cpu_s, run_load
from rich.console import Console
from rich.table import Table

from amdim_serving.choosing import settle
from amdim_serving.settings import Settings, load_settings

HERE = Path(__file__).resolve().parent
_MEMORY_EVERY_S = 0.5


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=None)
    parser.add_argument("--model", default="amdim")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "workers.json")
    args = parser.parse_args()
    # Chosen once, as a server of several workers does: every row serves the same.
    settings = settle(
        load_settings(
            model_repository=args.repository,
            model=args.model,
            engine=args.engine,
            precision=args.precision,
        )
    )
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        photos = collect_photos(args.photos, Path(folder))
        for number in range(args.rounds):
            for workers in args.workers:
                seen = measure(settings, photos, workers, args.clients, args.seconds)
                rounds.append({"round": number, "workers": workers, **seen})
    report = {
        "machine": {"cpu": cpu_name(), "cores": CORES},
        "engine": settings.engine,
        "precision": settings.precision,
        "clients": args.clients,
        "rows": [summarize(rounds, workers) for workers in args.workers],
        "rounds": rounds,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)


def measure(
    settings: Settings, photos: Sequence[Path], workers: int, clients: int, seconds: float
) -> dict[str, Any]:
    """Returns what one server of so many workers did in one measurement."""
    with Server(command(settings, "--workers", str(workers))) as server:
        run_load(server.port, photos, clients=clients, seconds=2)  # warm up
        with MemoryWatch(server.pid) as memory:
            cpu_s, machine_s = server.cpu_s(), machine_cpu_s()
            load = run_load(server.port, photos, clients=clients, seconds=seconds)
            cpu_s, machine_s = server.cpu_s() - cpu_s, machine_cpu_s() - machine_s
    good = load.requests - load.errors
    return {
        "images_per_s": good / load.seconds,
        "corrected_images_per_s": good / (load.seconds - load.cpu_s / CORES),
        "p50_ms": load.p50_ms,
        "p99_ms": load.p99_ms,
        "server_cpu_ms": 1e3 * cpu_s / max(1, load.requests),
        "others_cpu_share": (machine_s - cpu_s - load.cpu_s) / (load.seconds * CORES),
        "memory_mb": memory.largest_mb,
        "processes": memory.processes,
        "start_to_ready_s": server.ready_s,
        "errors": load.errors,
    }


class MemoryWatch:
    """Reads the memory of a process and all below it, while it is entered.

    Attributes:
        largest_mb: The largest sum of their proportional set sizes.
        processes: How many they were then.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.largest_mb = 0.0
        self.processes = 0

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_MEMORY_EVERY_S):
            with contextlib.suppress(OSError):  # one of them ended meanwhile
                pids = family(self._pid)
                sum_mb = sum(map(proportional_mb, pids))
                if sum_mb > self.largest_mb:
                    self.largest_mb, self.processes = sum_mb, len(pids)


def family(pid: int) -> list[int]:
    """Returns a process and all below it."""
    found = [pid]
    for parent in found:  # grows while it is read
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def proportional_mb(pid: int) -> float:
    """Returns a process's proportional set size in megabytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1024


def summarize(rounds: Sequence[dict[str, Any]], workers: int) -> dict[str, Any]:
    """Returns the medians of the rounds with so many workers; errors are added up."""
    own = [one for one in rounds if one["workers"] == workers]
    medians = {name: median(one[name] for one in own) for name in own[0] if name != "round"}
    return {**medians, "errors": sum(one["errors"] for one in own)}


def show(report: dict[str, Any]) -> None:
    """Prints the rows as a table."""
    columns = {
        "processes": "processes",
        "img/s": "images_per_s",
        "generator off": "corrected_images_per_s",
        "p50 ms": "p50_ms",
        "p99 ms": "p99_ms",
        "server CPU ms/img": "server_cpu_ms",
        "memory MB": "memory_mb",
        "ready s": "start_to_ready_s",
        "others' CPU": "others_cpu_share",
        "errors": "errors",
    }
    title = f"{report['engine']} {report['precision']}, {report['clients']} clients"
    table = Table("workers", *columns, title=f"{title}, load {os.getloadavg()[0]:.1f}")
    for row in report["rows"]:
        values = [row[column] for column in columns.values()]
        shown = (f"{one:.2f}" if isinstance(one, float) else str(one) for one in values)
        table.add_row(str(row["workers"]), *shown)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
