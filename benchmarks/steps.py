"""Where the gateway's own CPU goes, by step: a table in microseconds an image.

    python benchmarks/steps.py [--repository DIR] [--seconds 5]

`hollow.py` serves raw photos to 32 clients: nothing is decoded or encoded, so all of its CPU is the
gateway's own. py-spy, in an environment of its own, samples its threads where they run; each sample
counts for the innermost step that its stack is in. Which thread waits for which is not seen.
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from load import HERE, PHOTOS, Server, collect_photos, run_load

PROFILER = HERE.parent / ".venv" / "profile"
PINNED = "py-spy==0.4.3"
# By the file that a frame is in, innermost first; what is in none is the event loop's.
STEPS = {
    "metrics and statistics": ("prometheus_client/", "serving/metrics.py", "serving/stats.py"),
    "vectors, JSON, Server-Timing": (
        "serving/embed_answer.py",
        "serving/encodings.py",
        "serving/vectors.py",
    ),
    "read the body": ("serving/bodies.py",),
    "hand-offs to threads and back": ("serving/threads.py", "serving/decoding.py"),
    "admit, queue, batch": ("serving/batcher.py", "serving/jobs.py", "serving/pace.py"),
    "timeouts and the client's leaving": ("asyncio/timeouts.py", "serving/watching.py"),
    "the service": ("serving/service.py", "contextlib.py"),
    "head, key, request id, route": (
        "serving/edge.py",
        "serving/routes/",
        "serving/negotiation.py",
    ),
    "answer to the socket": ("starlette/responses.py",),
    "HTTP: parse, receive, send": ("uvicorn/protocols/", "serving/protocol.py"),
}


def main() -> None:
    """Profiles the hollow gateway."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=HERE.parent / "model_repository")
    parser.add_argument("--model", default="amdim")
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "steps.json")
    args = parser.parse_args()
    if not (PROFILER / "bin" / "py-spy").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PROFILER)], check=True)
        pip = [str(PROFILER / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, PINNED], check=True)
    hollow = [sys.executable, str(HERE / "hollow.py"), str(args.repository), args.model]
    with tempfile.TemporaryDirectory() as folder, Server(hollow) as server:
        photos = collect_photos(args.photos, Path(folder))
        run_load(server.port, photos, clients=32, seconds=1)  # warm up
        cpu_s = server.cpu_s()
        load = run_load(server.port, photos, clients=32, seconds=args.seconds)
        own_us = 1e6 * (server.cpu_s() - cpu_s) / load.requests
        stacks = Path(folder) / "stacks.txt"
        record = [str(PROFILER / "bin" / "py-spy"), "record", "--pid", str(server.pid)]
        record += ["--rate", "250", "--format", "raw", "--full-filenames", "--output", str(stacks)]
        with subprocess.Popen(
            [*record, "--duration", str(round(args.seconds))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ):
            run_load(server.port, photos, clients=32, seconds=args.seconds + 2)
        shares = count(stacks.read_text().splitlines())
    steps = {name: own_us * share for name, share in shares.items()}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps({"own_cpu_us": own_us, "steps_us": steps}, indent=2) + "\n")
    print("| step | us an image |\n|---|---|")
    for name, spent_us in sorted(steps.items(), key=lambda item: -item[1]):
        print(f"| {name} | {spent_us:.0f} |")
    print(f"| together | {own_us:.0f} |")


def count(lines: list[str]) -> dict[str, float]:
    """Returns each step's share of the samples."""
    seen: collections.Counter[str] = collections.Counter()
    for line in lines:
        stack, samples = line.rsplit(" ", 1)
        seen[step_of(stack.split(";"))] += int(samples)
    return {name: number / seen.total() for name, number in seen.items()}


def step_of(frames: list[str]) -> str:
    """Returns the innermost step of a stack, outermost frame first."""
    for frame in reversed(frames):
        for name, files in STEPS.items():
            if any(file in frame for file in files):
                return name
    return "the event loop itself: sockets, wake-ups"


if __name__ == "__main__":
    main()
