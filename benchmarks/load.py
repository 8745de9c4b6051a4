"""Load on a server from a process of its own, closed loop or open, and the server's process.

Closed loop: wrk where it is installed, else a small client. Open loop: `arrivals.c`, compiled on
the spot. Knows HTTP and photos; not what is measured with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
PHOTOS = HERE.parents[1] / "shared" / "data" / "photos.zip"
_SCRIPT = HERE / "photos.lua"


@dataclass(frozen=True)
class Wire:
    """How a photo is posted: where, under which headers, and between which bytes."""

    path: str = "/embed"
    headers: tuple[str, ...] = ("Content-Type: image/jpeg",)
    wrap: Callable[[bytes], bytes] | None = None


RAW = Wire()


@dataclass(frozen=True)
class LoadResult:
    """What one run of the generator saw, and the CPU it took itself."""

    generator: str
    requests: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_s: float


def run_load(
    port: int, photos: Sequence[Path], *, clients: int, seconds: float, wire: Wire = RAW
) -> LoadResult:
    """Keeps `clients` requests of one photo each in flight for `seconds`."""
    wrk = shutil.which("wrk")
    with tempfile.TemporaryDirectory() as folder:
        if wire.wrap is not None:
            bodies = [Path(folder) / f"{number}.body" for number in range(len(photos))]
            for body, photo in zip(bodies, photos, strict=True):
                body.write_bytes(wire.wrap(photo.read_bytes()))
            photos = bodies
        names = Path(folder) / "names.txt"
        names.write_text("\n".join(str(photo) for photo in photos))
        if wrk is not None:
            command = [wrk, "-t", "1", "-c", str(clients), "-d", f"{round(seconds)}s"]
            command += ["--timeout", "30s", "-s", str(_SCRIPT), f"http://127.0.0.1:{port}"]
        else:
            command = [sys.executable, __file__, str(port), str(clients), str(seconds)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = subprocess.run(
            command,
            env={
                **os.environ,
                "AMDIM_BENCH_PHOTOS": str(names),
                "AMDIM_BENCH_PATH": wire.path,
                "AMDIM_BENCH_HEADERS": "\n".join(wire.headers),
            },
            capture_output=True,
            text=True,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seen = json.loads(ran.stdout.strip().splitlines()[-1])
    return LoadResult("wrk" if wrk else "asyncio", cpu_s=cpu_s, **seen)


@dataclass(frozen=True)
class Arrivals:
    """What came of requests that left at a constant rate; latencies from when each was due."""

    sent: int
    good: int
    refused: int
    refused_without_retry_after: int
    failed: int
    unanswered: int
    seconds: float
    connections: int
    p50_ms: float
    p99_ms: float
    late_p99_ms: float
    """How late the generator itself was."""
    rate: float
    cpu_s: float


def run_arrivals(port: int, photos: Sequence[Path], *, rate: float, seconds: float) -> Arrivals:
    """Sends `rate` raw photos a second for `seconds`, whatever becomes of them.

    Raises:
        FileNotFoundError: There is no C compiler.
    """
    with tempfile.TemporaryDirectory() as folder:
        program, names = Path(folder) / "arrivals", Path(folder) / "photos.txt"
        source = str(HERE / "arrivals.c")
        subprocess.run(["cc", "-O2", "-D_GNU_SOURCE", source, "-o", str(program)], check=True)
        names.write_text("\n".join(str(photo) for photo in photos))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = subprocess.run(
            [str(program), str(port), str(rate), str(seconds), str(names)],
            capture_output=True,
            text=True,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Arrivals(**json.loads(ran.stdout), rate=rate, cpu_s=cpu_s)


class Server:
    """A server process that says on stderr which port it listens on.

    Args:
        command: Its line, the port left to it.
        env: Over the environment.

    Attributes:
        port: Where it listens.
        ready_s: Seconds from its start to its word.
    """

    def __init__(self, command: Sequence[str], *, env: dict[str, str] | None = None) -> None:
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        assert self._process.stderr is not None
        said: list[str] = []
        for line in self._process.stderr:
            said.append(line)
            if found := re.search(r"ready on http://[^:]+:(\d+)", line):
                self.port = int(found[1])
                self.ready_s = time.perf_counter() - started
                return
        raise RuntimeError("the server did not start: " + "".join(said[-5:]))

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    def cpu_s(self) -> float:
        """CPU seconds so far of the server and of the processes it started."""
        return sum(_cpu_s(pid) for pid in [self._process.pid, *_children(self._process.pid)])

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)
        if self._process.stderr is not None:
            self._process.stderr.close()


def machine_cpu_s() -> float:
    """CPU seconds of the whole machine so far: what neither load nor server took is others'."""
    fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from _children(int(child))


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


async def _client(port: int, bodies: list[bytes], first: int, end: float) -> list[float]:
    """One connection that posts photos until `end`; returns latencies, failures as NaN."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    latencies: list[float] = []
    lines = [f"POST {os.environ['AMDIM_BENCH_PATH']} HTTP/1.1", "Host: x"]
    lines += os.environ["AMDIM_BENCH_HEADERS"].splitlines()
    head = "".join(f"{line}\r\n" for line in lines)
    at = first
    while time.perf_counter() < end:
        body = bodies[at % len(bodies)]
        at += 1
        started = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in answer.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        await reader.readexactly(length)
        good = answer.startswith(b"HTTP/1.1 200")
        latencies.append(time.perf_counter() - started if good else float("nan"))
    writer.close()
    return latencies


async def _generate(port: int, clients: int, seconds: float) -> None:
    names = Path(os.environ["AMDIM_BENCH_PHOTOS"]).read_text().splitlines()
    bodies = [Path(name).read_bytes() for name in names]
    started = time.perf_counter()
    runs = await asyncio.gather(
        *(_client(port, bodies, 17 * n, started + seconds) for n in range(clients))
    )
    spent = time.perf_counter() - started
    latencies = [one for run in runs for one in run]
    good = sorted(1e3 * one for one in latencies if one == one)
    cuts = statistics.quantiles(good, n=100)
    seen = {
        "requests": len(latencies),
        "seconds": spent,
        "errors": len(latencies) - len(good),
        "p50_ms": cuts[49],
        "p99_ms": cuts[98],
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    asyncio.run(_generate(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
