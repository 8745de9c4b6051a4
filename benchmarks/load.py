"""Load on a gateway from a process of its own: wrk where it is installed, else a small client.

Knows HTTP and photos; not what is measured with them.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("photos.lua")


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


def run_load(port: int, photos: Sequence[Path], *, clients: int, seconds: float) -> LoadResult:
    """Keeps `clients` requests of one raw photo each in flight for `seconds`."""
    wrk = shutil.which("wrk")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as names:
        names.write("\n".join(str(photo) for photo in photos))
        names.flush()
        if wrk is not None:
            command = [wrk, "-t", "1", "-c", str(clients), "-d", f"{round(seconds)}s"]
            command += ["--timeout", "30s", "-s", str(_SCRIPT), f"http://127.0.0.1:{port}"]
        else:
            command = [sys.executable, __file__, str(port), str(clients), str(seconds)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = subprocess.run(
            command,
            env={**os.environ, "AMDIM_BENCH_PHOTOS": names.name},
            capture_output=True,
            text=True,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seen = json.loads(ran.stdout.strip().splitlines()[-1])
    return LoadResult("wrk" if wrk else "asyncio", cpu_s=cpu_s, **seen)


async def _client(port: int, bodies: list[bytes], first: int, end: float) -> list[float]:
    """One connection that posts photos until `end`; returns latencies, failures as NaN."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    latencies: list[float] = []
    at = first
    while time.perf_counter() < end:
        body = bodies[at % len(bodies)]
        at += 1
        started = time.perf_counter()
        head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
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
